# SPDX-License-Identifier: MIT
"""`bpfn bench --formats`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bpfn_cli.cli.console import ConsoleProgress, console, finish, print_json, say
from bpfn_cli.cli.network.tables import print_table

ROUNDS = 10
SCENES = 4  # at most, to calibrate int8 with


def bench_formats(
    checkpoint: Path | None,
    data: Path | None,
    points: int | None,
    rounds: int | None,
    *,
    out: Path | None,
    force: bool,
    json: bool,
) -> None:
    """Export a checkpoint to all formats and print a table of them; arguments as the flags of `bpfn bench`."""
    from bpfn_cli.cli.results.evaluate import read_weights
    from bpfn_cli.data.datasets import describe, open_dataset
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.files import claim_output, made_folder, write_json
    from bpfn_cli.models import build_from
    from bpfn_cli.models.exported import FORMATS
    from bpfn_cli.models.exported.verified_export import check_points
    from bpfn_cli.profiling import describe_machine
    from bpfn_cli.profiling.formats import measure_formats
    from bpfn_cli.profiling.trial import calibration_scenes
    from bpfn_cli.shipped import weights_title

    with made_folder(out and out.parent):
        if out is not None:
            claim_output(out, force=force, inputs=[checkpoint])
        dataset = None if data is None else open_dataset(data, "test")
        path, read = read_weights(checkpoint)
        keep_freed_memory()
        model, points, rounds = build_from(read), points or read.num_points, rounds or ROUNDS
        check_points(points, model)
        if left_out := [name for name, format in FORMATS.items() if not format.can_hold(model)]:
            say(f"without {', '.join(left_out)}, which cannot hold these sizes")
        on = describe(dataset) if dataset else "no data"
        say(f"weights: {weights_title(path)}; {points:,} points; EPE3D on {on}")
        with ConsoleProgress().bar("measuring formats") as bar:
            scenes = calibration_scenes(data, SCENES, points, or_fewer=True)
            measured = {"points": points, "rounds": rounds, "dataset": dataset, "scenes": scenes}
            found = measure_formats(model, **measured, progress=bar)  # type: ignore[arg-type]
        result = {"machine": describe_machine(), "points": points, "rounds": rounds}
        result |= {"data": None if dataset is None else describe(dataset), "results": [asdict(one) for one in found]}
        if out is not None:
            write_json(out, result)
    if json:
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
    if out is not None:
        finish(out)
