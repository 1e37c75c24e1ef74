# SPDX-License-Identifier: MIT
"""Trained networks that come with bpfn: for each, the weights and a card that says how they were made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import bpfn_cli.resources
from bpfn_cli.config import build, read_yaml, settings
from bpfn_cli.errors import CheckpointError, UsageError, did_you_mean, printable
from bpfn_cli.files import expanded
from bpfn_cli.history import TEACHER, Step, read_history

FOLDER = Path(bpfn_cli.resources.__file__).parent / "weights"
DEFAULT = "weightnet4"  # where no network is named; the most accurate one
STUDENT = "student.safetensors"  # in a run folder: the weights to deploy


@settings
class TestResult:
    """The metrics on one set of scenes: metres, pixels, or fractions of the points.

    scenes: what was evaluated. command: measures it again.
    """

    scenes: str
    command: str
    points: int
    epe3d: float
    acc3d_strict: float
    acc3d_relax: float
    outliers3d: float
    epe2d: float
    acc2d: float


@settings
class Card:
    """How a network was made, and how well it works.

    hours: of training, in all, on `machine`. recipes: the files in `configs/` that train it again, in this order.
    commit: of bpfn, when the training ended. bytes, sha256: of the file of weights. macs: of a pair of `points` points.
    sliced_from: the network whose weights it started from; None: random weights. results: by the name of a dataset.
    """

    variant: str
    title: str
    license: str
    data: str
    recipes: tuple[str, ...]
    commit: str
    seeds: tuple[int, ...]
    samples: int
    hours: float
    machine: str
    parameters: int
    macs: int
    points: int
    bytes: int
    sha256: str
    limits: str
    sliced_from: str | None = None
    results: dict[str, TestResult] = field(default_factory=dict)


@dataclass(frozen=True)
class ShippedNetwork:
    """A network by its name, with the file of its weights (float16) and its card."""

    name: str
    path: Path
    card: Card

    @property
    def history(self) -> tuple[Step, ...]:
        """This network and those that it was sliced from, the first one first; measured as the cards say."""
        card, kitti = self.card, self.card.results.get("kitti")
        own = Step(
            step="sliced, trained" if card.sliced_from else TEACHER,
            network=self.name,
            parameters=card.parameters,
            macs=card.macs,
            points=card.points,
            bytes=card.bytes,
            epe3d_m=kitti.epe3d if kitti else None,
            on=kitti.scenes if kitti else None,
            sha256=card.sha256,
        )
        return (*shipped_network(card.sliced_from).history, own) if card.sliced_from else (own,)


@cache
def shipped_networks() -> dict[str, ShippedNetwork]:
    """All networks that come with bpfn, the largest first."""
    found = [
        ShippedNetwork(path.stem, path.with_suffix(".safetensors"), build(Card, read_yaml(path, "reinstall bpfn")))
        for path in FOLDER.glob("*.yaml")
    ]
    return {one.name: one for one in sorted(found, key=lambda one: -one.card.parameters)}


def shipped_network(name: str) -> ShippedNetwork:
    """Raises: UsageError: there is none of this name."""
    known = shipped_networks()
    if name not in known:
        hint = did_you_mean(name, known) or "."
        raise UsageError(f"{printable(name)}: no network of this name comes with bpfn{hint} Known: {', '.join(known)}")
    return known[name]


def find_weights(given: Path) -> Path:
    """The file of weights that `given` means: a path, a run folder, or the name of a network that comes with bpfn.

    Raises: CheckpointError: none of them, or a run without deployed weights.
    """
    given = expanded(given)
    is_path = given.is_file() or given.name != str(given) or given.suffix
    if is_path or (given.is_dir() and given.name not in shipped_networks()):
        return _deployed(given) if given.is_dir() else given
    if given.name not in shipped_networks():
        hint = did_you_mean(given.name, shipped_networks()) or "; `bpfn weights` lists the networks that come with bpfn"
        raise CheckpointError(f"{printable(given)}: no such file or network{hint}")
    return shipped_networks()[given.name].path


def _deployed(run: Path) -> Path:
    """The weights of a run folder; another folder is reported where it is read."""
    if (run / STUDENT).is_file():
        return run / STUDENT
    if (run / "checkpoints").is_dir():
        advice = f"finish it with `bpfn resume {printable(run)}`, or name a file in its checkpoints/"
        raise CheckpointError(f"{printable(run)}: this run has no {STUDENT} yet; {advice}")
    return run


def history_of(metadata: Mapping[str, Any], sha256: str) -> tuple[Step, ...]:
    """The steps that made the weights of a file: those in its metadata, or of the card if it comes with bpfn."""
    by_card = (one.history for one in shipped_networks().values() if one.card.sha256 == sha256)
    return read_history(metadata, sha256) or next(by_card, ())


def given_name(path: Path) -> str:
    """What a user types for a file of weights: the name of a network that comes with bpfn, or the path."""
    return path.stem if path.parent == FOLDER else str(path)


def weights_title(path: Path) -> str:
    """A file of weights, as a line of output names it."""
    return f"{path.stem}, which comes with bpfn" if path.parent == FOLDER else str(path)
