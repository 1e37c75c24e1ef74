# SPDX-License-Identifier: MIT
"""`bpfn bench --formats`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from bpfn_cli.cli.console import ConsoleProgress, console, finish, print_json, say
from bpfn_cli.cli.network.tables import print_table

if TYPE_CHECKING:
    from bpfn_cli.cli.network.bench import BenchFlags

ROUNDS = 10
OTHERS = ("variant", "all_variants", "device", "batch", "train", "busy", "first", "default_allocator")  # without effect


def bench_formats(flags: BenchFlags) -> None:
    """Export a checkpoint to all formats and print a table of them."""
    from bpfn_cli.cli.results.evaluate import read_weights
    from bpfn_cli.data.datasets import describe, open_dataset
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.errors import UsageError
    from bpfn_cli.files import claim_output, write_json
    from bpfn_cli.models import build_from
    from bpfn_cli.precision import Precision
    from bpfn_cli.profiling import describe_machine
    from bpfn_cli.profiling.formats import measure_formats
    from bpfn_cli.shipped import weights_title

    given = [name for name in OTHERS if getattr(flags, name)]
    given += ["precision"] if flags.precision is not Precision.float32 else []
    if given:
        flag = "all" if given[0] == "all_variants" else given[0].replace("_", "-")
        raise UsageError(f"--{flag}: has no effect with --formats; leave it out")
    if len(flags.points or []) > 1:
        raise UsageError("--points: give it once with --formats")
    if flags.out is not None:
        claim_output(flags.out, force=flags.force, inputs=[flags.checkpoint])
    dataset = None if flags.data is None else open_dataset(flags.data, "test")
    path, read = read_weights(flags.checkpoint)
    keep_freed_memory()
    points = (flags.points or [read.num_points])[0]
    say(f"weights: {weights_title(path)}; {points:,} points; EPE3D on {describe(dataset) if dataset else 'no data'}")
    with ConsoleProgress().bar("measuring formats") as bar:
        found = measure_formats(
            build_from(read), points=points, rounds=flags.rounds or ROUNDS, dataset=dataset, progress=bar
        )
    result = {"machine": describe_machine(), "points": points, "rounds": flags.rounds or ROUNDS}
    result |= {"data": None if dataset is None else describe(dataset), "results": [asdict(one) for one in found]}
    if flags.out is not None:
        write_json(flags.out, result)
    if flags.json:
        print_json(result)
    else:
        headings = [
            "Format",
            "Weights",
            "Run by",
            "Device",
            "Size \\[MB]",
            "EPE3D \\[m]",
            "Median \\[ms]",
            "p90 \\[ms]",
        ]
        rows = [
            [
                *(one.format, one.stored, one.runtime, one.device, one.bytes / 1e6),
                None if one.epe3d_m is None else f"{one.epe3d_m:.4f}",
                *(one.median_ms, one.p90_ms, one.peak_memory_mb),
            ]
            for one in found
        ]
        print_table(f"Formats, one pair of {points:,} points", [*headings, "Memory \\[MB]"], rows)
        console().print(
            "Memory: peak of a process that loads the file and runs it twice, above what its libraries take."
        )
    if flags.out is not None:
        finish(flags.out, None)
