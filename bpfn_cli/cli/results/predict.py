# SPDX-License-Identifier: MIT
"""`bpfn predict`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json, say
from bpfn_cli.cli.places import RUNS

if TYPE_CHECKING:
    import numpy as np

from bpfn_cli.precision import Precision


class Frame(str, Enum):
    """Axes of the clouds."""

    internal = "internal"
    lidar = "lidar"
    camera = "camera"
    flyingthings3d = "flyingthings3d"


def predict(
    pc1: Annotated[Path, typer.Argument(readable=False, help="First cloud: .npy, .npz, .ply or .bin.", metavar="PC1")],
    pc2: Annotated[
        Path | None,
        typer.Argument(
            readable=False, help="Second cloud; not needed if PC1 is an .npz with pc1 and pc2.", metavar="PC2"
        ),
    ] = None,
    checkpoint: options.CheckpointFile = None,
    out: options.Out = None,
    frame: Annotated[
        Frame,
        typer.Option(
            "--frame",
            help="internal: x left, y up, z forward. lidar: x forward, y left, z up. camera: x right, y down, "
            "z forward. flyingthings3d: x right, y up, z backward.",
        ),
    ] = Frame.internal,
    points: options.Points = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.PrecisionName = Precision.float32,
    runs: options.Runs = RUNS,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Flow for your own two clouds: one row a point of PC1, in their frame, in metres.

    Examples: `bpfn predict a.ply b.ply --frame lidar --out flow.npy`, `bpfn predict pair.npz --frame lidar`
    """
    from bpfn_cli.errors import UsageError
    from bpfn_cli.files import claim_output

    path = out or Path("flow.npy")
    if path.suffix != ".npy":
        raise UsageError(f"--out {path}: flow is written as .npy; use that ending")
    claim_output(path, force=force, inputs=[pc1, pc2, checkpoint])
    from bpfn_cli.cli.results.evaluate import newest_checkpoint
    from bpfn_cli.data.files.clouds import read_cloud, read_cloud_pair
    from bpfn_cli.data.files.npy import write_points
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.metrics import scene_flow_metrics
    from bpfn_cli.models import build_from, read_checkpoint
    from bpfn_cli.models.predict import predict_flow

    first, second, truth = read_cloud_pair(pc1) if pc2 is None else (read_cloud(pc1), read_cloud(pc2), None)
    weights = checkpoint or newest_checkpoint(runs)
    chosen = resolve_device(device)
    keep_freed_memory()
    read = read_checkpoint(weights)
    for note in read.notes:
        say(f"{weights}: {note}")
    say(f"{len(first):,} and {len(second):,} points; weights: {weights} ({read.variant.name})")
    with ConsoleProgress().bar("predicting") as bar:
        flow = predict_flow(
            build_from(read).to(chosen),
            first,
            second,
            points=points or read.num_points,
            frame=frame.value,
            seed=seed or 0,
            device=chosen,
            precision=precision,
            progress=bar,
        )
    write_points(path, flow)
    measured = None if truth is None else dict(scene_flow_metrics(flow, truth, first))
    if json:
        print_json({"out": str(path), "points": len(flow), **_lengths(flow), "metrics": measured})
    else:
        print(
            ", ".join(
                f"{key.replace('_m', '').replace('_', ' ')} {value:.3f} m" for key, value in _lengths(flow).items()
            )
        )
        if measured is not None:
            print(f"against the flow in {pc1}: EPE3D {measured['epe3d']:.4f} m, Acc3DR {measured['acc3d_relax']:.3f}")
    finish(path, "bpfn report")


def _lengths(flow: np.ndarray) -> dict[str, Any]:
    import numpy as np

    lengths = np.linalg.norm(flow, axis=1)
    return {"mean_flow_m": float(lengths.mean()), "median_flow_m": float(np.median(lengths))}
