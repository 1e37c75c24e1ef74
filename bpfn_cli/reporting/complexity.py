# SPDX-License-Identifier: MIT
"""The complexity table: the size of each network, compared with the baseline variant and the published sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from bpfn_cli.reporting.published import Published, PublishedComplexity
from bpfn_cli.reporting.tables import PUBLISHED, Column, Table, Value, row_of
from bpfn_cli.runs.record import Complexity
from bpfn_cli.runs.results import Run

BASELINE_VARIANT = "baseline"


@dataclass(frozen=True)
class ComplexityRow:
    """A row about the runs of one network; `baseline`: the size of the baseline variant at the same points."""

    variant: str
    size: Complexity
    baseline: Complexity | None
    runs: list[Run]
    published: PublishedComplexity | None

    def percent(self, name: str) -> float | None:
        """One of the sizes in percent of the baseline variant's."""
        whole = getattr(self.baseline, name, 0)
        return 100 * getattr(self.size, name) / whole if whole else None

    def printed(self, name: str) -> Value:
        """One of the published sizes."""
        return getattr(self.published, name, None)

    @property
    def train_minutes(self) -> str | None:
        """Shortest and longest training of the finished runs."""
        seconds = sorted(s for run in self.runs if run.complete and (s := run.record.train_seconds) is not None)
        minutes = [f"{one / 60:.1f}" for one in seconds[:1] + seconds[-1:]]
        return " to ".join(dict.fromkeys(minutes)) or None


# For rows about a `ComplexityRow`.
COMPLEXITY = [
    Column("model", "Model", lambda row: row.variant),
    Column("points", "Points", lambda row: row.size.points, "d"),
    Column("parameters_m", "Params", lambda row: row.size.parameters / 1e6, ".2f", "M"),
    Column("parameters_percent", "Params vs baseline", lambda row: row.percent("parameters"), ".0f", "%", detail=1),
    Column("parameters", "Params exact", lambda row: row.size.parameters, ",d", detail=2),
    Column("unused_parameters", "Params unused", lambda row: row.size.unused_parameters, ",d", detail=4),
    Column("module_macs_g", "MACs", lambda row: row.size.module_macs / 1e9, ".2f", "G"),
    Column("module_macs_percent", "MACs vs baseline", lambda row: row.percent("module_macs"), ".0f", "%", detail=1),
    Column("checkpoint_mb", "File", lambda row: row.size.checkpoint_bytes / 1e6, ".2f", "MB"),
    Column("checkpoint_percent", "File vs baseline", lambda row: row.percent("checkpoint_bytes"), ".0f", "%", detail=3),
    Column("train_minutes", "Training", lambda row: row.train_minutes, "", "min"),
]
PUBLISHED_SIZES = [
    Column("published_parameters_m", "published Params", lambda row: row.printed("parameters_m"), "", "M"),
    Column("published_macs_g", "published MACs", lambda row: row.printed("macs_g"), "", "G"),
    Column("published_checkpoint_mb", "published File", lambda row: row.printed("checkpoint_mb"), "", "MB"),
]
NOTES = [
    "MACs: multiply-accumulates of the convolution and linear modules, with biases and activations, for one pair of "
    "clouds of that many points; matrix products outside modules are not counted.",
    "Vs baseline: relative to the variant baseline at the same points. Training: of the finished runs, on whatever "
    "machine they ran.",
]


def complexity_tables(runs: Sequence[Run], published: Published | None) -> list[Table]:
    """One table of all networks of `runs`, with the published sizes if given; none if no size is known."""
    columns = [*COMPLEXITY, *PUBLISHED_SIZES] if published else COMPLEXITY
    notes = [*NOTES, f"Published: {PUBLISHED}, at 8192 points."] if published else NOTES
    rows = [row_of(columns, network) for network in _networks(runs, published)]
    return [Table("complexity", "Complexity", columns, rows, notes)] if rows else []


def _networks(runs: Sequence[Run], published: Published | None) -> Iterator[ComplexityRow]:
    """Runs grouped by points, variant and size; for each number of points the baseline variant comes first."""
    entries = published.complexity if published else ()
    ours = [entry for entry in entries if entry.parameters_m is not None and not entry.is_other_network]
    sizes = {entry.variant: entry for entry in ours}
    baselines: dict[int, Complexity] = {}
    sized = [(run, size) for run in runs if (size := run.record.complexity)]
    for _, group in groupby(sorted(sized, key=_place), key=_place):
        members = list(group)
        variant, size = members[0][0].record.variant, members[0][1]
        if variant == BASELINE_VARIANT:
            baselines.setdefault(size.points, size)
        yield ComplexityRow(variant, size, baselines.get(size.points), [run for run, _ in members], sizes.get(variant))


def _place(sized: tuple[Run, Complexity]) -> tuple[int, bool, int, str, int]:
    # Not by bytes: the size of a file depends on the length of the name of its run.
    variant, size = sized[0].record.variant, sized[1]
    return size.points, variant != BASELINE_VARIANT, -size.parameters, variant, size.module_macs
