# SPDX-License-Identifier: MIT
"""Choose the scenes of a subset: by hash, by stride, or stratified by flow length and depth."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bpfn_cli.data.augment import even_rows
from bpfn_cli.data.datasets.base import SceneNames, in_one_line
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.subset.manifest import SubsetOptions, stride
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import read_file
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import MAX_DEPTH_M, Scene

GOOD_DISTANCE = 0.005  # largest gap between the distribution functions at which a stratified choice is good enough
_PROPOSALS_PER_SCENE = 100
_LEAST_PROPOSALS = 20_000
_POINTS = 1000  # of a scene, evenly spaced rows
_FLOW_EDGES_M = np.concatenate([[0], np.geomspace(0.01, 20, 39), [np.inf]])
_DEPTH_EDGES_M = np.concatenate([np.linspace(0, MAX_DEPTH_M, 40), [np.inf]])


def choose(names: tuple[str, ...], fraction: float | None, options: SubsetOptions) -> tuple[str, ...]:
    """Choose by stride or hash, at least one scene by hash. fraction: None: all."""
    if fraction is None or not names:
        return names
    if options.method == "stride":
        return names[options.offset :: stride(fraction)]
    count = max(1, round(fraction * len(names)))
    return tuple(sorted(by_hash(names, options.seed)[:count]))


def by_hash(names: Sequence[str], key: int | str) -> list[str]:
    """Sort `names` by sha256("key:name"), the same on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{key}:{name}".encode()).digest())


def distributions(scene: Scene) -> np.ndarray:
    """(2, 40): the share of a scene's points below each edge of flow length and of depth."""
    rows = even_rows(len(scene.pc1), _POINTS)
    values = np.linalg.norm(scene.flow[rows], axis=1), scene.pc1[rows, 2]
    edges = _FLOW_EDGES_M, _DEPTH_EDGES_M
    counts = [np.histogram(value, edge)[0] for value, edge in zip(values, edges, strict=True)]
    return np.cumsum(counts, axis=1) / len(rows)


def choose_stratified(scenes: np.ndarray, first: Sequence[int], seed: int) -> list[int]:
    """Choose scenes whose distributions are within `GOOD_DISTANCE` of those of all scenes, if possible.

    Starting from `first`, scenes drawn at random are exchanged for others wherever that reduces the distance.

    Args:
        scenes: (N, 2, 40), `distributions` of each scene. first: indices of the initial choice.
    Returns: sorted indices, as many as `first`; they depend on the arguments only.
    """
    chosen = np.array(sorted(first))
    others = np.setdiff1d(np.arange(len(scenes)), chosen)
    target, total = scenes.mean(axis=0), scenes[chosen].sum(axis=0)
    distance = float(np.abs(total / len(chosen) - target).max())
    generator = keyed_generator("stratified", seed, len(scenes), len(chosen))
    for _ in range(max(_LEAST_PROPOSALS, _PROPOSALS_PER_SCENE * len(chosen)) if len(others) else 0):
        if distance <= GOOD_DISTANCE:
            break
        out, into = int(generator.integers(len(chosen))), int(generator.integers(len(others)))
        proposed = total - scenes[chosen[out]] + scenes[others[into]]
        gap = float(np.abs(proposed / len(chosen) - target).max())
        if gap < distance:
            distance, total = gap, proposed
            chosen[out], others[into] = others[into], chosen[out]
    return sorted(chosen.tolist())


def read_leave_out(path: Path) -> tuple[str, ...]:
    """Sorted names of a list with one "split/scene" per line, as `bpfn data check --fix-list` writes it.

    Raises: DataError: no such file, or a line of another form.
    """
    lines = read_file(path).decode("utf-8", "replace").splitlines()
    names = sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})
    for name in names:
        if name.count("/") != 1 or name.split("/")[0] not in SPLITS:
            raise DataError(f"{printable(path)}: {printable(name)[:80]} is not of the form train/NAME or val/NAME")
    return tuple(names)


def leave_out(available: SceneNames, names: Sequence[str], root: Path) -> dict[str, tuple[str, ...]]:
    """The available scenes (split -> names) without `names`. Raises: DataError: some are not available."""
    known = {f"{split}/{name}" for split in available for name in available[split]}
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"{printable(root)}: no scene {printable(in_one_line(unknown))} to leave out; check the list")
    dropped = set(names)
    return {
        split: tuple(name for name in scenes if f"{split}/{name}" not in dropped) for split, scenes in available.items()
    }


def refuse_colliding(names: Sequence[str], folder: Path) -> None:
    """Raises: DataError: two names that macOS or Windows could not keep in one folder."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(
                f"{printable(folder)}: {other} and {name} are the same name on some file systems; rename one"
            )
