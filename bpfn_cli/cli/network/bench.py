# SPDX-License-Identifier: MIT
"""`bpfn bench`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, finish, print_json, say, say_next
from bpfn_cli.cli.network.tables import chosen_variants, measure, measure_each, print_table
from bpfn_cli.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bpfn_cli.profiling import Case, Latency
    from bpfn_cli.profiling.conditions import FirstPass

NEXT = ("bpfn", "profile", "--all", "--latency")
ROUNDS = 10
PROCESSES = 5
WITHOUT_FORMATS = ("variant", "all_variants", "device", "batch", "train", "busy", "first", "default_allocator", "plot")


@dataclass(frozen=True, kw_only=True)
class BenchFlags:
    """What `bpfn bench` takes."""

    variant: Annotated[list[str] | None, Option(help=f"{options.VARIANT}; repeatable.", metavar="NAME|FILE")] = None
    all_variants: Annotated[bool, options.switch("--all", "All named variants.")] = False
    checkpoint: options.CheckpointFile = None
    device: Annotated[list[str] | None, Option(help="auto, cpu, cuda or cuda:N; repeatable.", metavar="NAME")] = None
    points: Annotated[list[int] | None, Option(min=1, max=2**19, help="Points per cloud; repeatable.", metavar="N")] = (
        None
    )
    batch: Annotated[
        list[int] | None, Option(min=1, max=1024, help="Pairs of clouds per pass; repeatable.", metavar="N")
    ] = None
    train: Annotated[bool, options.switch("--train", "Measure a training step (forward and backward).")] = False
    plain: Annotated[
        bool | None, options.switch("--plain/--no-plain", "Compare with the plain path; default: yes.")
    ] = None
    precision: options.PrecisionName = Precision.float32
    rounds: Annotated[
        int | None, Option(min=1, max=10_000, help="Passes of each path (default 10), or processes (5).", metavar="N")
    ] = None
    busy: Annotated[
        int, Option(min=0, max=1024, help="Cores that other processes keep busy meanwhile.", metavar="N")
    ] = 0
    formats: Annotated[bool, options.switch("--formats", "Compare all export formats of --checkpoint instead.")] = False
    data: Annotated[Path | None, options.path("--data", help="Dataset for the EPE3D of --formats.", metavar="DIR")] = (
        None
    )
    first: Annotated[bool, options.switch("--first", "Measure the first pass of new processes instead.")] = False
    default_allocator: Annotated[
        bool, options.switch("--default-allocator", "Return freed memory to the system; other commands keep it.")
    ] = False
    out: Annotated[Path | None, options.out("all times, as JSON")] = None
    plot: Annotated[
        Path | None, options.path("--plot", help="Also draw the times, as PNG and SVG.", metavar="FILE")
    ] = None
    force: options.Force = False
    json: options.Json = False


@options.takes(BenchFlags)
def bench(flags: BenchFlags) -> None:
    """Measure time and memory of networks, by stage.

    By default, they are compared with the plain path (the published network in plain PyTorch) in the same process.
    Passes of the fast path, the plain path and matrix products take turns, so other load on the machine slows all of
    them alike. Only the layer sizes of a checkpoint are used.

    \b
    Examples:
      $ bpfn bench                                                      # baseline and weightnet48
      $ bpfn bench --variant baseline --train --batch 4 --points 2048   # a training step
      $ bpfn bench --precision bf16                                     # reduced precision
      $ bpfn bench --all --no-plain --device cpu --device cuda          # compare devices
      $ bpfn bench --no-plain --busy 1                                  # while another process keeps a core busy
      $ bpfn bench --formats --checkpoint s.safetensors --data data/kitti   # onnx, torch, float16, ...
      $ bpfn bench --first                                              # what the first pass of a process takes
      $ bpfn bench --points 1024 --points 8192 --out bench.json         # keep all times
      $ bpfn bench --all --no-plain --plot bench.png                    # draw them
    """
    from bpfn_cli.cli.network.formats import bench_formats
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.errors import UsageError
    from bpfn_cli.files import claim_output, made_folder, write_json
    from bpfn_cli.profiling.conditions import busy_cores, measure_first_pass

    if flags.formats:
        _check_formats(flags)
        points = flags.points[0] if flags.points else None
        where = flags.checkpoint, flags.data, points, flags.rounds
        return bench_formats(*where, out=flags.out, force=flags.force, json=flags.json)
    if flags.data is not None:
        raise UsageError("--data: only --formats measures accuracy; `bpfn eval` does for one network")
    if flags.first and flags.plain is not None:
        raise UsageError(f"--{_plain_flag(flags)}: has no effect with --first; leave it out")
    cases, out = _cases(flags), flags.out
    with made_folder(out and out.parent, flags.plot and flags.plot.parent):
        figures = _claimed_figures(flags)
        if out is not None:
            claim_output(out, force=flags.force, inputs=[flags.checkpoint])
        about: dict[str, Any] = {
            "mode": "training step" if flags.train else "inference",
            "precision": flags.precision.value,
        }
        about |= {"busy_cores": flags.busy}
        kept, rounds = not flags.default_allocator, flags.rounds or (PROCESSES if flags.first else ROUNDS)
        with busy_cores(flags.busy):
            if flags.first:
                about |= {"mode": f"first {about['mode']}"}
                measured: list[Any] = measure_each(measure_first_pass, cases, processes=rounds, keep_freed=kept)
            else:
                kept = kept and keep_freed_memory()
                measured = measure(cases, rounds=rounds, plain=flags.plain is not False, keep_freed=kept)
        about |= {"freed_memory_kept": kept, "rounds": rounds}
        result = _result(measured, **about)
        if out is not None:
            write_json(out, result)
        if figures:
            from bpfn_cli.figures.style import write_figure
            from bpfn_cli.profiling.figures import bench_figure

            write_figure(bench_figure(result), figures[0].parent, figures[0].stem)
            say(f"written: {', '.join(map(str, figures))}")
    if flags.json:
        print_json(result)
    elif flags.first:
        _print_first(measured, result)
    else:
        _print_times(measured, result)
        _print_stages(measured)
    finish(out, *NEXT) if out is not None else say_next(*NEXT)


def _claimed_figures(flags: BenchFlags) -> list[Path]:
    """The files of --plot, checked before the work."""
    from bpfn_cli.errors import UsageError
    from bpfn_cli.figures.style import figure_names
    from bpfn_cli.files import claim_outputs
    from bpfn_cli.viewing.libraries import need_viz

    if flags.plot is None:
        return []
    if flags.first:
        raise UsageError("--plot: draws the times of passes; leave out --first")
    need_viz("matplotlib")
    names = figure_names(flags.plot.stem if flags.plot.suffix in (".png", ".svg") else flags.plot.name)
    return claim_outputs(flags.plot.parent, names, force=flags.force, inputs=[], flag="--plot")


def _check_formats(flags: BenchFlags) -> None:
    """Raises: UsageError: a flag that --formats does not use."""
    from bpfn_cli.errors import UsageError

    given = [name for name in WITHOUT_FORMATS if getattr(flags, name)]
    given += [_plain_flag(flags)] if flags.plain is not None else []
    given += ["precision"] if flags.precision is not Precision.float32 else []
    if given:
        flag = "all" if given[0] == "all_variants" else given[0].replace("_", "-")
        raise UsageError(f"--{flag}: has no effect with --formats; leave it out")
    if len(flags.points or []) > 1:
        raise UsageError("--points: give it once with --formats")


def _plain_flag(flags: BenchFlags) -> str:
    """As it was typed."""
    return "plain" if flags.plain else "no-plain"


def _cases(flags: BenchFlags) -> list[Case]:
    from bpfn_cli.device import resolve_device
    from bpfn_cli.errors import UsageError
    from bpfn_cli.profiling import Case

    names, points, batches = flags.variant or [], flags.points or [PUBLISHED_POINTS], flags.batch or [1]
    variants = chosen_variants(names, flags.all_variants, flags.checkpoint, default=["baseline", "weightnet48"])
    devices = [str(resolve_device(name)) for name in flags.device or ["auto"]]
    given: dict[str, list[Any]] = {"--variant": names, "--device": devices, "--points": points, "--batch": batches}
    for flag, values in given.items():
        for value in values:
            if values.count(value) > 1:
                raise UsageError(f"{flag} {value}: duplicate; leave one out")
    combinations = product(variants, devices, points, batches)
    return [Case(one, count, batch, device, flags.train, flags.precision) for one, device, count, batch in combinations]


def _result(measured: list[Any], **about: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from bpfn_cli.profiling import describe_machine

    return {"machine": describe_machine(), **about, "results": [asdict(one) for one in measured]}


def _print_times(measured: list[Latency], result: dict[str, Any]) -> None:
    headings = ["Median \\[ms]", "p90 \\[ms]", "Pairs/s", "Memory [MB]", "Floor \\[ms]"]
    if any(one.plain is not None for one in measured):
        headings += ["Plain \\[ms]", "Plain memory [MB]", "Times faster", "Times less memory"]
    title = f"One pass ({result['mode']}, {result['precision']}), rounds: {result['rounds']}{_beside(result)}"
    _print_rows(title, measured, headings, [_times(one)[: len(headings)] for one in measured])
    machine = result["machine"]
    devices = ", ".join([machine["cpu"], *machine["cuda"]])
    kept = "kept by the process" if result["freed_memory_kept"] else "returned to the system"
    console().print(
        f"{devices}; {machine['threads']} threads; torch {machine['torch']}; freed memory {kept}.\n"
        "Memory: peak above the start. Floor: a lower bound on the time, the matrix products that the fast path "
        f"computes ({_each(measured, 'matrix_gflop')} GFLOP)\nat the float32 rate measured between the rounds "
        f"({_each(measured, 'gemm_gflops')} GFLOP/s; torch.mm {_each(measured, 'torch_gemm_gflops')}), "
        "plus the measured geometry."
    )
    for one in measured:
        if one.plain_skipped is not None:
            console().print(f"Plain path not measured for {one.variant} at {one.points} points: {one.plain_skipped}.")


def _print_first(measured: list[FirstPass], result: dict[str, Any]) -> None:
    headings = ["import torch \\[s]", "Whole process \\[s]", "First pass \\[s]", "Later pass \\[s]", "Times the least"]
    names = "import_torch_s", "process_s", "first_s", "later_s", "times_least"
    rows = [[f"{getattr(one, name):.2f}" for name in names] for one in measured]
    _print_rows(f"New processes ({result['mode']}){_beside(result)}", measured, headings, rows)
    console().print("The least: importing torch, and a later pass.")


def _beside(result: dict[str, Any]) -> str:
    return f", {result['busy_cores']} cores kept busy by others" if result["busy_cores"] else ""


def _times(one: Latency) -> list[float | None]:
    fast, plain = one.fast, one.plain
    row = [fast.median_ms, fast.p90_ms, fast.pairs_per_s, fast.peak_memory_mb, one.floor_ms]
    if plain is None:
        return [*row, None, None, None, None]
    less = plain.peak_memory_mb / fast.peak_memory_mb if plain.peak_memory_mb and fast.peak_memory_mb else None
    return [*row, plain.median_ms, plain.peak_memory_mb, plain.median_ms / fast.median_ms, less]


def _each(measured: list[Latency], field: str) -> str:
    """The distinct values of a field, in the order of the rows."""
    return ", ".join(dict.fromkeys(f"{getattr(one, field):.1f}" for one in measured))


def _print_stages(measured: list[Latency]) -> None:
    from bpfn_cli.profiling.latency import STAGES

    names = [name for name in STAGES if any(name in one.stages_ms for one in measured)]
    rows = [[one.stages_ms.get(name) for name in names] for one in measured]
    _print_rows("Stages, median \\[ms]", measured, [name.capitalize() for name in names], rows)
    console().print("Geometry (sampling, neighbors, warping) is not included in the levels that need it.")


def _print_rows(
    title: str, measured: Sequence[Latency | FirstPass], headings: list[str], rows: Sequence[Sequence[object]]
) -> None:
    """Print a table with a row per case; what all cases have in common is in the title."""
    first = measured[0]
    same = {"device": first.device, "points": f"{first.points} points", "batch": f"batch {first.batch}"}
    varying = [name for name in same if len({getattr(one, name) for one in measured}) > 1]
    title = ", ".join([title, *(text for name, text in same.items() if name not in varying)])
    headings = ["Variant", *(name.capitalize() for name in varying), *headings]
    cases = [[one.variant, *(getattr(one, name) for name in varying)] for one in measured]
    print_table(title, headings, [[*case, *row] for case, row in zip(cases, rows, strict=True)])
