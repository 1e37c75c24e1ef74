# SPDX-License-Identifier: MIT
"""`bpfn bench`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, finish, print_json, say
from bpfn_cli.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bpfn_cli.models import Variant
    from bpfn_cli.profiling import Case, Latency


def bench(
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="A named variant; repeatable.", metavar="NAME")
    ] = None,
    all_variants: Annotated[bool, typer.Option("--all", help="All named variants.", metavar="")] = False,
    checkpoint: options.CheckpointFile = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N; repeatable.", metavar="TEXT")
    ] = None,
    points: Annotated[
        list[int] | None, typer.Option("--points", min=1, max=2**19, help="Points of each cloud; repeatable.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, max=1024, help="Pairs of clouds at once; repeatable.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Forward and backward of a training step, not inference.", metavar="")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Compare with the plain path.", metavar="")] = True,
    precision: options.PrecisionName = Precision.float32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Passes of each path.")] = 10,
    default_allocator: Annotated[
        bool,
        typer.Option(
            "--default-allocator",
            help="Leave freed memory to the C library; else it stays in the process, as in all commands.",
            metavar="",
        ),
    ] = False,
    out: options.Out = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Time and memory of networks, by stage, against the plain path in the same process.

    Rounds of fast path, plain path and matrix products follow one another, so that other work on the machine slows
    all alike. Of a checkpoint only the sizes matter.

    Examples: `bpfn bench`, `bpfn bench --variant baseline --train --batch 4 --points 2048`,
    `bpfn bench --precision bf16`,
    `bpfn bench --all --no-plain --device cpu --device cuda`, `bpfn bench --points 1024 --points 8192 --out bench.json`
    """
    from dataclasses import asdict

    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.files import claim_output, write_json
    from bpfn_cli.profiling import describe_machine, measure_latency

    variants = _variants(variant or [], all_variants, checkpoint)
    cases = _cases(variants, device or ["auto"], points or [8192], batch or [1], train, precision)
    if out is not None:
        claim_output(out, force=force, inputs=[checkpoint])
    kept = not default_allocator and keep_freed_memory()
    measured = []
    for case in cases:
        with ConsoleProgress().bar(str(case)) as bar:
            measured.append(measure_latency(case, rounds=rounds, plain=plain, keep_freed=kept, progress=bar))
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "mode": "training step" if train else "inference",
        "precision": precision.value,
        "freed_memory_kept": kept,
        "rounds": rounds,
        "results": [asdict(one) for one in measured],
    }
    if out is not None:
        write_json(out, result)
    if json:
        print_json(result)
    else:
        _print_table(measured, result)
        _print_stages(measured)
    if out is not None:
        finish(out, "bpfn profile --all --latency")
    else:
        say("next: bpfn profile --all --latency")


def _variants(names: list[str], all_variants: bool, checkpoint: Path | None) -> list[Variant]:
    from bpfn_cli.errors import UsageError
    from bpfn_cli.models import VARIANTS, read_checkpoint, variant_named

    if bool(names) + all_variants + (checkpoint is not None) > 1:
        raise UsageError("--variant, --all and --checkpoint: give one of them")
    if checkpoint is not None:
        read = read_checkpoint(checkpoint)
        for note in read.notes:
            say(f"{checkpoint}: {note}")
        return [read.variant]
    _refuse_repeats("--variant", names)
    if all_variants:
        return list(VARIANTS.values())
    return [variant_named(name) for name in names or ("baseline", "weightnet48")]


def _cases(
    variants: list[Variant],
    devices: list[str],
    points: list[int],
    batches: list[int],
    training: bool,
    precision: Precision,
) -> list[Case]:
    from bpfn_cli.device import resolve_device
    from bpfn_cli.profiling import Case

    resolved = [str(resolve_device(name)) for name in devices]
    _refuse_repeats("--device", resolved)
    _refuse_repeats("--points", points)
    _refuse_repeats("--batch", batches)
    return [
        Case(variant, count, batch, device, training, precision)
        for variant, device, count, batch in product(variants, resolved, points, batches)
    ]


def _refuse_repeats(flag: str, values: list[Any]) -> None:
    from bpfn_cli.errors import UsageError

    for value in values:
        if values.count(value) > 1:
            raise UsageError(f"{flag} {value}: is given twice; leave one out")


def _print_table(measured: list[Latency], result: dict[str, Any]) -> None:
    plain = any(one.plain is not None for one in measured)
    headings = ["Median \\[ms]", "p90 \\[ms]", "Pairs/s", "Memory [MB]", "Floor \\[ms]"]
    headings += ["Plain \\[ms]", "Plain memory [MB]", "Times faster", "Times less memory"] if plain else []
    rows = []
    for one in measured:
        fast = one.fast
        row = [fast.median_ms, fast.p90_ms, fast.pairs_per_s, fast.peak_memory_mb, one.floor_ms]
        if one.plain is not None:
            row += [one.plain.median_ms, one.plain.peak_memory_mb]
            row += [one.plain.median_ms / fast.median_ms, _ratio(one.plain.peak_memory_mb, fast.peak_memory_mb)]
        rows.append([*row, *[None] * (len(headings) - len(row))])
    _print_rows(
        f"One pass ({result['mode']}, {result['precision']}), rounds: {result['rounds']}", measured, headings, rows
    )
    machine = result["machine"]
    devices = ", ".join([machine["cpu"], *machine["cuda"]])
    kept = "kept by the process" if result["freed_memory_kept"] else "left to the C library"
    out = console()
    out.print(
        f"{devices}; {machine['threads']} threads; torch {machine['torch']}; freed memory {kept}.\n"
        "Memory: peak above the start. Floor: the matrix products left after the algebra "
        f"({_each(measured, 'matrix_gflop')} GFLOP)\nat the float32 rate measured between the rounds "
        f"({_each(measured, 'gemm_gflops')} GFLOP/s; torch.mm {_each(measured, 'torch_gemm_gflops')}), "
        "and the geometry as measured."
    )
    for one in measured:
        if one.plain_skipped is not None:
            out.print(f"Plain path not measured for {one.variant} at {one.points} points: {one.plain_skipped}.")


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _each(measured: list[Latency], field: str) -> str:
    """The values of a field, each named once, in the order of the rows."""
    return ", ".join(dict.fromkeys(f"{getattr(one, field):.1f}" for one in measured))


def _print_stages(measured: list[Latency]) -> None:
    from bpfn_cli.profiling.latency import STAGES

    names = [name for name in STAGES if any(name in one.stages_ms for one in measured)]
    _print_rows(
        "Stages, median \\[ms]",
        measured,
        [name.capitalize() for name in names],
        [[one.stages_ms.get(name) for name in names] for one in measured],
    )
    console().print("Geometry (sampling, neighbors, warping) stands apart from the levels it is done for.")


def _print_rows(
    title: str, measured: list[Latency], headings: list[str], rows: Sequence[Sequence[float | None]]
) -> None:
    """A table with a row a case; what is the same for all cases stands in the title."""
    from rich.table import Table

    first = measured[0]
    varying = [name for name in ("device", "points", "batch") if len({getattr(one, name) for one in measured}) > 1]
    same = {"device": first.device, "points": f"{first.points} points", "batch": f"batch {first.batch}"}
    title = ", ".join([title, *(text for name, text in same.items() if name not in varying)])
    table = Table(title=title)
    table.add_column("Variant", no_wrap=True)
    for heading in (*(name.capitalize() for name in varying), *headings):
        table.add_column(heading, justify="right")
    for one, row in zip(measured, rows, strict=True):
        numbers = ("-" if value is None else f"{value:.1f}" for value in row)
        table.add_row(one.variant, *(str(getattr(one, name)) for name in varying), *numbers)
    console().print(table)
