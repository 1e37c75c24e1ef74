# SPDX-License-Identifier: MIT
"""The complexity table: what each network weighs, beside the baseline variant and the reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from bpfn_cli.reporting.layout import PUBLISHED, Column, Table, Value, row_of
from bpfn_cli.reporting.published import Published, PublishedComplexity
from bpfn_cli.runs.results import Complexity, Run

BASELINE_VARIANT = "baseline"

COMPLEXITY = (
    Column("model", "Model"),
    Column("points", "Points", "d"),
    Column("parameters_m", "Params [M]", ".2f"),
    Column("parameters_percent", "Params vs baseline", ".0f", " %", detail=1),
    Column("parameters", "Params exact", ",d", detail=2),
    Column("unused_parameters", "Params unused", ",d", detail=4),
    Column("module_macs_g", "MACs [G]", ".2f"),
    Column("module_macs_percent", "MACs vs baseline", ".0f", " %", detail=1),
    Column("checkpoint_mb", "File [MB]", ".2f"),
    Column("checkpoint_percent", "File vs baseline", ".0f", " %", detail=3),
    Column("train_minutes", "Training [min]", ""),
)
PUBLISHED_BESIDE = (
    Column("published_parameters_m", "published Params [M]", ""),
    Column("published_macs_g", "published MACs [G]", ""),
    Column("published_checkpoint_mb", "published File [MB]", ""),
)


def complexity_tables(runs: Sequence[Run], published: Published | None) -> list[Table]:
    """One table of all networks of `runs`, with the `published` sizes beside ours, or none."""
    groups = _same_networks(runs)
    if not groups:
        return []
    columns = (*COMPLEXITY, *PUBLISHED_BESIDE) if published else COMPLEXITY
    beside = {entry.variant: entry for entry in published.complexity} if published else {}
    references: dict[int, Complexity] = {}
    rows = []
    for size, members in groups:
        record = members[0].record
        if record.variant == BASELINE_VARIANT:
            references.setdefault(size.points, size)
        known: dict[str, Value] = {
            "model": record.variant,
            "points": size.points,
            **_size_cells(size, references.get(size.points)),
            "train_minutes": _range_of_minutes(members),
            **_published_cells(beside.get(record.variant)),
        }
        rows.append(row_of(columns, known))
    return [Table("complexity", "Complexity", columns, tuple(rows), _notes(bool(published)))]


def _notes(with_published: bool) -> tuple[str, ...]:
    notes = (
        "MACs: multiply-accumulates of the convolution and linear modules, their biases and activations, "
        "for one pair of clouds of that many points; products outside modules are not in this figure.",
        "Vs baseline: share of the variant baseline at the same points. Training: minutes of the finished "
        "runs, on whatever machine they ran.",
    )
    if not with_published:
        return notes
    return (*notes, f"Columns named published: {PUBLISHED}, at 8192 points.")


def _same_networks(runs: Iterable[Run]) -> list[tuple[Complexity, list[Run]]]:
    """Runs grouped by points, variant and size; at equal points the baseline variant first."""

    def place(run: Run) -> tuple[int, bool, int, str, int]:
        record, size = run.record, run.record.complexity
        if size is None:
            return 0, True, 0, record.variant, 0
        # The bytes of a file vary by the length of a run's name.
        return size.points, record.variant != BASELINE_VARIANT, -size.parameters, record.variant, size.module_macs

    groups = [list(group) for _, group in groupby(sorted(runs, key=place), key=place)]
    return [(size, members) for members in groups if (size := members[0].record.complexity)]


def _size_cells(size: Complexity, reference: Complexity | None) -> dict[str, Value]:
    shares: dict[str, Value] = {}
    if reference:
        shares = {
            "parameters_percent": _percent(size.parameters, reference.parameters),
            "module_macs_percent": _percent(size.module_macs, reference.module_macs),
            "checkpoint_percent": _percent(size.checkpoint_bytes, reference.checkpoint_bytes),
        }
    return {
        "parameters_m": size.parameters / 1e6,
        "parameters": size.parameters,
        "unused_parameters": size.unused_parameters,
        "module_macs_g": size.module_macs / 1e9,
        "checkpoint_mb": size.checkpoint_bytes / 1e6,
        **shares,
    }


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def _range_of_minutes(runs: Iterable[Run]) -> str | None:
    """Shortest and longest training as text; the accuracy rows have each run's own."""
    finished = (run.record.train_seconds for run in runs if run.complete)
    minutes = [seconds / 60 for seconds in finished if seconds is not None]
    if not minutes:
        return None
    shortest, longest = f"{min(minutes):.1f}", f"{max(minutes):.1f}"
    return shortest if shortest == longest else f"{shortest} to {longest}"


def _published_cells(entry: PublishedComplexity | None) -> dict[str, Value]:
    if entry is None:
        return {}
    return {
        "published_parameters_m": entry.params_m,
        "published_macs_g": entry.macs_g,
        "published_checkpoint_mb": entry.checkpoint_mb,
    }
