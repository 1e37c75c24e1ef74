# SPDX-License-Identifier: MIT
"""`bpfn profile`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, print_json, say

if TYPE_CHECKING:
    from bpfn_cli.profiling import Profile


def profile(
    variant: options.VariantName = None,
    all_variants: Annotated[bool, typer.Option("--all", help="All named variants.", metavar="")] = False,
    checkpoint: options.CheckpointFile = None,
    points: options.Points = None,
    json: options.Json = False,
) -> None:
    """Parameters, multiply-accumulates (MACs) and file size of a network.

    Examples: `bpfn profile --variant weightnet48`, `bpfn profile --all`, `bpfn profile --checkpoint student.pth`
    """
    from bpfn_cli.errors import UsageError

    if (variant is not None) + all_variants + (checkpoint is not None) > 1:
        raise UsageError("--variant, --all and --checkpoint: give one of them")
    from bpfn_cli.models import VARIANTS, read_checkpoint, variant_named
    from bpfn_cli.profiling import profile_model

    file_bytes = None
    if checkpoint is not None:
        read = read_checkpoint(checkpoint)
        for note in read.notes:
            say(f"{checkpoint}: {note}")
        chosen, file_bytes = [read.variant], checkpoint.stat().st_size
    else:
        chosen = (
            list(VARIANTS.values()) if all_variants else [variant_named("weightnet48" if variant is None else variant)]
        )
    profiles = []
    with ConsoleProgress().bar("counting") as bar:
        for done, one in enumerate(chosen, start=1):
            profiles.append(profile_model(one, points or 8192, file_bytes=file_bytes))
            bar(done, len(chosen), one.name)
    if json:
        from dataclasses import asdict

        print_json([asdict(one) for one in profiles] if all_variants else asdict(profiles[0]))
        return
    _print_sizes(profiles)
    if len(profiles) == 1:
        _print_levels(profiles[0])
    say("next: bpfn distill --loss bihint" + (f" --variant {variant}" if variant else ""))


def _print_sizes(profiles: list[Profile]) -> None:
    from rich.table import Table

    table = Table(title=f"Networks, one pair of {profiles[0].points} points per cloud")
    for heading in (
        "Variant",
        "Parameters",
        "of which unused",
        "MACs, modules [G]",
        "MACs, operators [G]",
        "File [MB]",
    ):
        table.add_column(heading, justify="left" if heading == "Variant" else "right")
    for one in profiles:
        table.add_row(
            one.variant,
            f"{one.parameters:,}",
            f"{one.unused_parameters:,}",
            f"{one.module_macs / 1e9:.2f}",
            f"{one.operator_macs / 1e9:.2f}",
            f"{one.checkpoint_bytes / 1e6:.1f}",
        )
    out = console()
    out.print(table)
    out.print(
        "MACs, modules: convolutions, linear maps, their biases and activation modules, as in the published tables.\n"
        "MACs, operators: fvcore's count, matrix products outside modules included. Never compare the two."
    )


def _print_levels(one: Profile) -> None:
    from rich.table import Table

    table = Table(title=f"{one.variant} by level")
    for heading in ("Level", "Points", "Parameters", "MACs, modules [G]", "MACs, operators [G]"):
        table.add_column(heading, justify="right")
    for level in one.levels:
        table.add_row(
            str(level.level),
            f"{level.points:,}",
            f"{level.parameters:,}",
            f"{level.module_macs / 1e9:.3f}",
            f"{level.operator_macs / 1e9:.3f}",
        )
    out = console()
    out.print(table)
    names = ", ".join(f"{name.split('::')[-1]} {count}x" for name, count in one.uncounted.items())
    out.print(f"Not counted by fvcore: {names}.", soft_wrap=True)
