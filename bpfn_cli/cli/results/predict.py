# SPDX-License-Identifier: MIT
"""`bpfn predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.choices import Frame
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, echo, finish, print_json, say
from bpfn_cli.precision import Precision

if TYPE_CHECKING:
    from bpfn_cli.metrics.prediction import Predictions
    from bpfn_cli.models.predict import FlowPredictor

FIRST = options.path_argument(
    help="First cloud: .npy, .npz, .ply, .pcd or .bin; or a folder or .txt list of many.", metavar="PC1"
)
SECOND = options.path_argument(help="Second cloud; not needed if PC1 holds both, or many.", metavar="PC2")
FRAME = typer.Option(
    "--frame",
    help="internal: x left, y up, z forward. lidar: x forward, y left, z up. camera: x right, y down, z forward. "
    "flyingthings3d: x right, y up, z backward.",
)
ONE, MANY = Path("flow.npy"), Path("flow")  # default outputs


@dataclass(frozen=True, kw_only=True)
class PredictFlags:
    """What `bpfn predict` takes."""

    pc1: Annotated[Path, FIRST]
    pc2: Annotated[Path | None, SECOND] = None
    checkpoint: options.CheckpointFile = None
    out: options.Out = None
    frame: Annotated[Frame, FRAME] = "internal"
    points: options.Points = None
    seed: options.Seed = 0
    device: options.Device = "auto"
    precision: options.PrecisionName = Precision.float32
    force: options.Force = False
    json: options.Json = False


@options.takes(PredictFlags)
def predict(flags: PredictFlags) -> None:
    """Predict the flow between two clouds, or of many pairs.

    Without --checkpoint, the network is `weightnet4`, which comes with bpfn and was trained on synthetic driving
    scenes. The flow has one row for each point of PC1, in metres, in the frame of the clouds. It is written to
    `flow.npy` unless --out is given. If PC1 is an .npz with pc1, pc2 and flow, the prediction is also compared with
    that flow.

    PC1 may also be a folder of frames, of .npz pairs or of folders with pc1.npy and pc2.npy, or a .txt list with a
    pair of paths on each line. Then --out is a folder (default `flow`), which gets a file for each pair.

    \b
    Examples:
      $ bpfn predict a.ply b.ply --frame lidar --out ab.npy     # two LiDAR scans
      $ bpfn predict a.ply b.ply --checkpoint mine.safetensors  # your own network
      $ bpfn predict pair.npz --frame lidar                     # both clouds in one file
      $ bpfn predict scans --frame lidar --out flows            # a sequence: each scan with the next
      $ bpfn predict pairs.txt --frame lidar --out flows        # a list: a.ply b.ply on each line
    """
    from bpfn_cli.data.files.pairs import holds_many
    from bpfn_cli.errors import DataError, UsageError, printable

    if flags.pc2 is None and not flags.pc1.exists():
        raise DataError(f"{printable(flags.pc1)}: no such file or folder; check the path")
    if not holds_many(flags.pc1):
        _predict_one(flags)
    elif flags.pc2 is None:
        _predict_many(flags)
    else:
        raise UsageError(f"{printable(flags.pc1)}: holds many pairs; leave out {printable(flags.pc2)}")


def _predict_one(flags: PredictFlags) -> None:
    from bpfn_cli.errors import UsageError
    from bpfn_cli.files import claim_output

    path, pc1, pc2 = flags.out or ONE, flags.pc1, flags.pc2
    if path.suffix != ".npy":
        raise UsageError(f"--out {path}: flow is written as .npy; use that extension")
    claim_output(path, force=flags.force, inputs=[pc1, pc2, flags.checkpoint])
    from bpfn_cli.data.files.clouds import read_cloud, read_cloud_pair
    from bpfn_cli.data.files.points import write_points
    from bpfn_cli.metrics.prediction import FlowFigures
    from bpfn_cli.profiling.memory import resident_bytes

    first, second, truth = read_cloud_pair(pc1) if pc2 is None else (read_cloud(pc1), read_cloud(pc2), None)
    predictor = _load(flags, f"{len(first):,} and {len(second):,} points")
    with ConsoleProgress().bar("predicting") as bar:
        flow = predictor(first, second, progress=bar)
    write_points(path, flow)
    figures = FlowFigures.of(flow, first, truth)
    if flags.json:
        print_json({"out": str(path), **figures.as_dict(), "peak_memory_mb": resident_bytes(peak=True) / 1e6})
    else:
        echo(f"mean flow {figures.mean_flow_m:.3f} m, median flow {figures.median_flow_m:.3f} m")
        if metrics := figures.metrics:
            echo(f"against the flow in {pc1}: EPE3D {metrics.epe3d:.4f} m, Acc3DR {metrics.acc3d_relax:.3f}")
    finish(path, "bpfn report")


def _predict_many(flags: PredictFlags) -> None:
    from bpfn_cli.data.files.pairs import find_pairs
    from bpfn_cli.errors import UsageError
    from bpfn_cli.files import claim_outputs

    folder = flags.out or MANY
    if folder.suffix == ".npy":
        raise UsageError(f"--out {folder}: the flows of many pairs need a folder; leave out .npy")
    pairs = find_pairs(flags.pc1)
    inputs = [path for pair in pairs for path in (pair.first, pair.second) if path is not None]
    names = [f"{pair.name}.npy" for pair in pairs]
    outputs = claim_outputs(folder, names, force=flags.force, inputs=[flags.pc1, *inputs])
    from bpfn_cli.metrics.prediction import predict_pairs

    predictor = _load(flags, f"{len(pairs):,} pairs")
    with ConsoleProgress().bar("predicting") as bar:
        done = predict_pairs(predictor, pairs, outputs, bar)
    _show_many(folder, done, json=flags.json)
    finish(folder, "bpfn report")


def _load(flags: PredictFlags, what: str) -> FlowPredictor:
    """The network with its settings. what: the data, for the line that is printed."""
    from bpfn_cli.cli.results.evaluate import read_weights
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.models import build_from
    from bpfn_cli.models.predict import FlowPredictor
    from bpfn_cli.shipped import weights_title

    device = resolve_device(flags.device)
    weights, read = read_weights(flags.checkpoint)
    keep_freed_memory()
    own = f" ({read.variant.name})" if flags.checkpoint else "; for others, give --checkpoint"
    say(f"{what}; weights: {weights_title(weights)}{own}")
    return FlowPredictor(
        build_from(read).to(device),
        points=flags.points or read.num_points,
        frame=flags.frame,
        seed=flags.seed or 0,
        device=device,
        precision=flags.precision,
    )


def _show_many(folder: Path, done: Predictions, *, json: bool) -> None:
    from bpfn_cli.profiling.memory import resident_bytes

    memory_mb = resident_bytes(peak=True) / 1e6
    if json:
        pairs = [{"name": path.stem, "out": str(path), **each.as_dict()} for path, each in done.figures.items()]
        figures = {"pairs_per_s": done.pairs_per_s, "peak_memory_mb": memory_mb}
        print_json({"out": str(folder), "pairs": pairs, **figures})
        return
    echo(f"{len(done.figures):,} pairs, {done.pairs_per_s:.3g} pairs/s, peak memory {memory_mb:,.0f} MB")
    metrics, known = done.mean_metrics()
    if metrics is not None:
        echo(f"mean over {known:,} pairs with a flow: EPE3D {metrics.epe3d:.4f} m, Acc3DR {metrics.acc3d_relax:.3f}")
