# SPDX-License-Identifier: MIT
"""`search.json`: what defines a search, and what it has found so far. Only this module reads and writes that file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bpfn_cli.choices import Importance
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.files import disk_errors, write_atomic
from bpfn_cli.metrics.result import Amount, Count, Name, Positive, Schema
from bpfn_cli.models.sizes import AnyVariant
from bpfn_cli.runs.record import read_schema

STATE_FILE = "search.json"


class Definition(Schema):
    """What the results of a search follow from. points: of the pair whose MACs are counted.

    used, held_out: numbers of scenes to learn from and to measure on, of `scene_points` points each.
    """

    bpfn: Name
    teacher_sha256: Name
    data_sha256: Name
    used: Positive
    held_out: Positive
    scene_points: Positive
    points: Positive
    seed: Count
    importance: Importance
    budgets: Positive
    tries: Positive
    keep: Positive
    recovery_steps: Count
    latency: bool

    def differences(self, other: Definition) -> list[str]:
        """A phrase for each entry in which another search differs."""
        pairs = [(key, getattr(self, key), getattr(other, key)) for key in type(self).model_fields]
        return [f"{key} {_short(key, now)}, here {_short(key, then)}" for key, now, then in pairs if now != then]


def _short(key: str, value: object) -> str:
    return printable(value)[:8] if key.endswith("sha256") else printable(value)


class Candidate(Schema):
    """A network that was cut and not trained. epe3d_m: on some of the scenes to learn from, metres."""

    variant: AnyVariant
    macs: Positive
    epe3d_m: Amount


class Trained(Schema):
    """A network after the recovery. EPE3D in metres on the held-out scenes: cut_m: before, epe3d_m: after it.

    is_named: a variant that the search is compared with. file: its checkpoint, in the folder of the search.
    """

    name: Name
    is_named: bool = False
    file: Name | None = None
    parameters: Positive
    macs: Positive
    latency_ms: Amount | None = None
    cut_m: Amount
    epe3d_m: Amount


class SearchState(Schema):
    """A search so far.

    teacher: size and error, with equal cut_m and epe3d_m. orders: of each group of channels, the most important one
    first. sensitivities: of each size, its measured values with metres.
    """

    format: Literal[1] = 1
    definition: Definition
    teacher: Trained | None = None
    orders: tuple[tuple[Count, ...], ...] = ()
    sensitivities: tuple[tuple[tuple[Count, Amount], ...], ...] = ()
    candidates: tuple[Candidate, ...] = ()
    networks: Annotated[tuple[Trained, ...], Field(max_length=10_000)] = ()
    is_finished: bool = False

    def changed(self, **changes: Any) -> SearchState:
        return self.model_copy(update=changes)

    def write(self, folder: Path) -> None:
        """Write `search.json`, atomically. Raises: DiskError."""
        write_atomic(folder / STATE_FILE, (self.model_dump_json() + "\n").encode())

    def results(self) -> dict[str, Any]:
        """For `--json`: without what only a resumption needs."""
        return self.model_dump(mode="json", exclude={"orders", "sensitivities"})


def open_state(folder: Path, definition: Definition) -> SearchState:
    """The state of this search in its folder, new if there is none.

    Raises: UsageError: the folder holds another search. DataError: its state is damaged.
    """
    path = folder / STATE_FILE
    with disk_errors(path):
        if not path.exists():
            return SearchState(definition=definition)
    state = read_schema(path, SearchState, "restore it, or use another --out")
    if differences := definition.differences(state.definition):
        message = "; ".join(differences)
        raise UsageError(
            f"{printable(folder)}: holds another search: {message}; repeat its command, or use another --out"
        )
    return state
