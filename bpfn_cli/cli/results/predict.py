# SPDX-License-Identifier: MIT
"""`bpfn predict`."""

from pathlib import Path
from typing import Annotated

import typer

from bpfn_cli.choices import Frame
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json, say
from bpfn_cli.cli.places import RUNS
from bpfn_cli.precision import Precision

FIRST = typer.Argument(readable=False, help="First cloud: .npy, .npz, .ply, .pcd or .bin.", metavar="PC1")
SECOND = typer.Argument(readable=False, help="Second cloud; not needed if PC1 is an .npz with both.", metavar="PC2")
FRAME = typer.Option(
    "--frame",
    help="internal: x left, y up, z forward. lidar: x forward, y left, z up. camera: x right, y down, z forward. "
    "flyingthings3d: x right, y up, z backward.",
)


def predict(
    pc1: Annotated[Path, FIRST],
    pc2: Annotated[Path | None, SECOND] = None,
    checkpoint: options.CheckpointFile = None,
    out: options.Out = None,
    frame: Annotated[Frame, FRAME] = "internal",
    points: options.Points = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.PrecisionName = Precision.float32,
    runs: options.Runs = RUNS,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Predict the flow between two clouds.

    The flow has one row for each point of PC1, in metres, in the frame of the clouds. It is written to `flow.npy`
    unless --out is given. If PC1 is an .npz with pc1, pc2 and flow, the prediction is also compared with that flow.

    \b
    Examples:
      $ bpfn predict a.ply b.ply --frame lidar --out ab.npy     # two LiDAR scans
      $ bpfn predict pair.npz --frame lidar                     # both clouds in one file
    """
    from bpfn_cli.errors import UsageError
    from bpfn_cli.files import claim_output

    path = out or Path("flow.npy")
    if path.suffix != ".npy":
        raise UsageError(f"--out {path}: flow is written as .npy; use that extension")
    claim_output(path, force=force, inputs=[pc1, pc2, checkpoint])
    import numpy as np

    from bpfn_cli.cli.results.evaluate import read_weights
    from bpfn_cli.data.files.clouds import read_cloud, read_cloud_pair
    from bpfn_cli.data.files.points import write_points
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.metrics import scene_flow_metrics
    from bpfn_cli.models import build_from
    from bpfn_cli.models.predict import predict_flow

    first, second, truth = read_cloud_pair(pc1) if pc2 is None else (read_cloud(pc1), read_cloud(pc2), None)
    where, seed = resolve_device(device), seed or 0
    weights, read = read_weights(checkpoint, runs)
    keep_freed_memory()
    say(f"{len(first):,} and {len(second):,} points; weights: {weights} ({read.variant.name})")
    model, points = build_from(read).to(where), points or read.num_points
    with ConsoleProgress().bar("predicting") as bar:
        flow = predict_flow(
            model, first, second, points=points, frame=frame, seed=seed, device=where, precision=precision, progress=bar
        )
    write_points(path, flow)
    lengths = np.linalg.norm(flow, axis=1)
    mean, median = float(lengths.mean()), float(np.median(lengths))
    metrics = None if truth is None else dict(scene_flow_metrics(flow, truth, first))
    if json:
        lengths_m = {"mean_flow_m": mean, "median_flow_m": median}
        print_json({"out": str(path), "points": len(flow), **lengths_m, "metrics": metrics})
    else:
        print(f"mean flow {mean:.3f} m, median flow {median:.3f} m")
        if metrics:
            print(f"against the flow in {pc1}: EPE3D {metrics['epe3d']:.4f} m, Acc3DR {metrics['acc3d_relax']:.3f}")
    finish(path, "bpfn report")
