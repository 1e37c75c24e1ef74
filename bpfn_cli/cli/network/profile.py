# SPDX-License-Identifier: MIT
"""`bpfn profile`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, print_json, say

if TYPE_CHECKING:
    from bpfn_cli.models import Variant
    from bpfn_cli.profiling import Latency, Profile


def profile(
    variant: options.VariantName = None,
    all_variants: Annotated[bool, typer.Option("--all", help="All named variants.", metavar="")] = False,
    checkpoint: options.CheckpointFile = None,
    points: options.Points = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time of one pass too, as `bpfn bench` measures it.", metavar="")
    ] = False,
    json: options.Json = False,
) -> None:
    """Parameters, multiply-accumulates (MACs) and file size of a network.

    Examples: `bpfn profile --variant weightnet48`, `bpfn profile --all --latency`,
    `bpfn profile --checkpoint student.pth`
    """
    from bpfn_cli.errors import UsageError

    if (variant is not None) + all_variants + (checkpoint is not None) > 1:
        raise UsageError("--variant, --all and --checkpoint: give one of them")
    from bpfn_cli.models import VARIANTS, read_checkpoint, variant_named
    from bpfn_cli.profiling import profile_model

    count = points or 8192
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
            profiles.append(profile_model(one, count, file_bytes=file_bytes))
            bar(done, len(chosen), one.name)
    measured = _measure(chosen, count) if latency else None
    if json:
        from dataclasses import asdict

        found = [asdict(one) for one in profiles]
        for about, its_latency in zip(found, measured or [], strict=latency):
            about["latency"] = asdict(its_latency)
        print_json(found if all_variants else found[0])
        return
    _print_sizes(profiles)
    if measured is not None:
        _print_latencies(measured)
    if len(profiles) == 1:
        _print_levels(profiles[0])
    say("next: bpfn distill --loss bihint" + (f" --variant {variant}" if variant else ""))


def _measure(variants: list[Variant], points: int) -> list[Latency]:
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.profiling import Case, measure_latency

    cases = [Case(variant, points, device=str(resolve_device("auto"))) for variant in variants]
    kept = keep_freed_memory()
    measured = []
    for case in cases:
        with ConsoleProgress().bar(str(case)) as bar:
            measured.append(measure_latency(case, plain=False, memory=False, keep_freed=kept, progress=bar))
    return measured


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


def _print_latencies(measured: list[Latency]) -> None:
    from rich.table import Table

    from bpfn_cli.profiling import describe_machine

    first, machine = measured[0], describe_machine()
    table = Table(title=f"Time of one pair on {first.device}, {machine['threads']} threads")
    table.add_column("Variant")
    for heading in ("Median \\[ms]", "p90 \\[ms]", "Pairs/s"):
        table.add_column(heading, justify="right")
    for one in measured:
        fast = one.fast
        table.add_row(one.variant, f"{fast.median_ms:.1f}", f"{fast.p90_ms:.1f}", f"{fast.pairs_per_s:.2f}")
    console().print(table)


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
