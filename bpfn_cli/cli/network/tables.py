# SPDX-License-Identifier: MIT
"""What `bpfn profile` and `bpfn bench` have in common: choosing and measuring networks, and tables of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bpfn_cli.cli.console import ConsoleProgress, console, say

if TYPE_CHECKING:
    from bpfn_cli.profiling import Case, Latency


Measured = TypeVar("Measured")


def chosen_variants(
    names: Sequence[str], all_variants: bool, checkpoint: Path | None, default: Sequence[str] = ()
) -> list[Any]:
    """The variants that `--variant`, `--all` or `--checkpoint` name. Raises: UsageError: more than one is given."""
    from bpfn_cli.errors import UsageError
    from bpfn_cli.models import VARIANTS, find_variant, read_checkpoint

    if bool(names) + all_variants + (checkpoint is not None) > 1:
        raise UsageError("--variant, --all and --checkpoint: use only one of them")
    if checkpoint is not None:
        read = read_checkpoint(checkpoint)
        for note in read.notes:
            say(f"{checkpoint}: {note}")
        return [read.variant]
    return list(VARIANTS.values()) if all_variants else [find_variant(name) for name in names or default]


def measure(cases: Iterable[Case], **options: Any) -> list[Latency]:
    """Call `measure_latency` with a progress bar for each case."""
    from bpfn_cli.profiling import measure_latency

    return measure_each(measure_latency, cases, **options)


def measure_each(function: Callable[..., Measured], cases: Iterable[Case], **options: Any) -> list[Measured]:
    """Call a function with a progress bar for each case."""
    measured = []
    for case in cases:
        with ConsoleProgress().bar(str(case)) as bar:
            measured.append(function(case, progress=bar, **options))
    return measured


def print_table(title: str, headings: Iterable[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; all columns but the first are numbers. A float has one digit, None is a dash."""
    from rich.table import Table

    table = Table(title=title)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        cells = ("-" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row)
        table.add_row(*cells)
    console().print(table)
