# SPDX-License-Identifier: MIT
"""`bpfn predict`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.choices import Frame, Invalid
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, echo, finish, print_json, say
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.precision import Precision

if TYPE_CHECKING:
    import numpy as np

    from bpfn_cli.data.clouds.search import Source
    from bpfn_cli.metrics.classes import ClassSums
    from bpfn_cli.models.predict import FlowPredictor
    from bpfn_cli.prediction.many import Predictions
    from bpfn_cli.prediction.outputs import Outputs
    from bpfn_cli.prediction.pair import FlowFigures, Treatment

FIRST = options.path_argument(
    help="First cloud: .npy, .npz, .ply, .pcd, .bin, .las, .laz, .xyz, .txt or .csv, also with .gz; or a folder, "
    "a .txt list, a dataset or one of its scenes.",
    metavar="PC1",
)
SECOND = options.path_argument(help="Second cloud; not needed if PC1 holds both, or many.", metavar="PC2")
FRAME = typer.Option(
    "--frame",
    help="internal (default): x left, y up, z forward. lidar: x forward, y left, z up. nuscenes: x right, y forward, "
    "z up. camera: x right, y down, z forward. flyingthings3d: x right, y up, z backward.",
)
AXES = typer.Option(
    "--axes", help="Any other frame: where x, y and z point, such as right,forward,up.", metavar="X,Y,Z"
)
COLUMNS = typer.Option(
    "--columns",
    min=3,
    max=256,
    help="Number of columns of a .bin file; default: detected from the values.",
    metavar="N",
)
INVALID = typer.Option("--invalid", help="Flow written for rows of PC1 without a prediction.")
POSE = options.path(
    "--pose",
    help="Sensor motion: file with the 4x4 pose from PC1 to PC2 coordinates, or `estimate`; also writes the flow "
    "without it.",
    metavar="FILE|estimate",
)
AVERAGE = typer.Option("--average", min=1, max=1000, help="Mean over N random splits of a large cloud.", metavar="N")
ESTIMATE = Path("estimate")
ONE, MANY = Path("flow.npy"), Path("flow")  # default outputs
MOST_PAIRS_WITH_NOTES = 5  # of many, that are printed


@dataclass(frozen=True, kw_only=True)
class PredictFlags:
    """What `bpfn predict` takes."""

    pc1: Annotated[Path, FIRST]
    pc2: Annotated[Path | None, SECOND] = None
    checkpoint: options.CheckpointFile = None
    out: Annotated[Path | None, options.out("the flow; default: flow.npy, or flow/ for many pairs")] = None
    frame: Annotated[Frame | None, FRAME] = None
    axes: Annotated[str | None, AXES] = None
    columns: Annotated[int | None, COLUMNS] = None
    center: Annotated[bool, options.switch("--center", "Subtract an origin from both clouds; for map coordinates.")] = (
        False
    )
    remove_ground: Annotated[bool, options.switch("--remove-ground", "Remove the ground plane.")] = False
    invalid: Annotated[Invalid, INVALID] = "zero"
    pose: Annotated[Path | None, POSE] = None
    average: Annotated[int, AVERAGE] = 1
    points: options.SeenPoints = None
    seed: options.Seed = 0
    device: options.Device = "auto"
    precision: options.PrecisionName = Precision.float32
    force: options.Force = False
    json: options.Json = False

    @property
    def pose_file(self) -> Path | None:
        """The file with the poses, if they are given."""
        return None if self.pose == ESTIMATE else self.pose

    @property
    def asked_frame(self) -> str | None:
        """The frame that the user gives, as `axes_of` takes it."""
        return self.frame or self.axes


@options.takes(PredictFlags)
def predict(flags: PredictFlags) -> None:
    """Predict the flow between two clouds, or of many pairs.

    Without --checkpoint, the network is `weightnet4`, which comes with bpfn and was trained on synthetic driving
    scenes. The flow has one row for each row of PC1, in metres, in the frame of the clouds. Rows without a point are
    left out: their flow is zero, or NaN with --invalid nan. The flow contains the motion of the sensor; --pose takes it
    out. If PC1 is an .npz with both clouds and their flow, or a scene of a dataset, the prediction is also compared
    with that flow; by motion too if the file has `dynamic`.

    The flow is written to `flow.npy` unless --out is given. A .ply or .pcd has the points, their flow (flow_x, flow_y,
    flow_z) and a color for it; an .npz has pc1 and flow.

    PC1 may also be a folder of frames, of .npz pairs or of folders with pc1.npy and pc2.npy, a dataset, or a .txt list
    with a pair of paths, or one frame, on each line. Then --out is a folder (default `flow`), which gets a file for
    each pair.

    \b
    Examples:
      $ bpfn predict a.ply b.ply --frame lidar --out ab.npy     # two LiDAR scans
      $ bpfn predict a.ply b.ply --frame lidar --out flow.ply   # colored points, for any viewer of clouds
      $ bpfn predict a.ply b.ply --checkpoint mine.safetensors  # your own network
      $ bpfn predict a.ply b.ply --checkpoint mine.onnx         # a file that `bpfn export` wrote
      $ bpfn predict a.pcd.bin b.pcd.bin --remove-ground        # two sweeps of nuScenes
      $ bpfn predict a.laz b.laz --frame nuscenes --center      # coordinates of a map: x east, y north, z up
      $ bpfn predict pair.npz --frame lidar --pose estimate     # both clouds in one file; the motion of objects too
      $ bpfn predict scans --frame lidar --out flows            # a sequence: each scan with the next
      $ bpfn predict pairs.txt --frame lidar --out flows        # a list: a.ply b.ply on each line
      $ bpfn predict data/kitti                                 # the test scenes of a dataset
    """
    from bpfn_cli.data.clouds.search import find_source
    from bpfn_cli.files import made_folder
    from bpfn_cli.frames import axes_of
    from bpfn_cli.prediction.motion import read_poses

    if flags.frame is not None and flags.axes is not None:
        raise UsageError("--frame and --axes: use only one of them")
    if flags.asked_frame:
        axes_of(flags.asked_frame)
    source = find_source(flags.pc1, flags.pc2, known_frame=flags.asked_frame is not None)
    if flags.columns is not None and not source.is_plain:
        raise UsageError(f"--columns {flags.columns}: only .bin files need it; the others name their columns")
    poses = read_poses(flags.pose_file, len(source.pairs)) if flags.pose_file else None
    with made_folder(flags.out or MANY if source.many else (flags.out or ONE).parent):
        if source.many:
            _predict_many(flags, source, poses)
        else:
            _predict_one(flags, source, poses[0] if poses else None)


def _treatment(flags: PredictFlags) -> Treatment:
    from bpfn_cli.prediction.pair import Treatment

    return Treatment(
        center=flags.center,
        remove_ground=flags.remove_ground,
        invalid=flags.invalid,
        estimate_pose=flags.pose == ESTIMATE,
    )


def _claim_outputs(flags: PredictFlags, source: Source) -> list[Outputs]:
    """Where the results go, which is checked before any work."""
    from bpfn_cli.files import claim_output, claim_outputs
    from bpfn_cli.prediction.flow_files import FLOW_FORMATS, check_ending
    from bpfn_cli.prediction.outputs import Outputs

    inputs = [path for pair in source.pairs for path in pair.inputs]
    extra = {"residual": flags.pose is not None, "pose": flags.pose == ESTIMATE}
    if not source.many:
        path = flags.out or ONE
        check_ending(path)
        output = Outputs.beside(path, **extra)
        for one in output.paths:
            claim_output(one, force=flags.force, inputs=[*inputs, flags.checkpoint, flags.pose_file])
        return [output]
    folder = flags.out or MANY
    if folder.suffix in FLOW_FORMATS:
        fault = f"the flows of many pairs need a folder; leave out {folder.suffix}"
        raise UsageError(f"--out {printable(folder)}: {fault}")
    if flags.pc1.is_dir() and flags.pc1.resolve() in folder.resolve().parents:
        fault = f"the flows of {printable(flags.pc1)} would lie inside it"
        raise UsageError(f"--out {printable(folder)}: {fault}; give another folder, such as --out ../{MANY}")
    outputs = [Outputs.beside(folder / f"{pair.name}.npy", **extra) for pair in source.pairs]
    names = [path.name for output in outputs for path in output.paths]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"--out {printable(folder)}: two results would be written to {printable(twice)}; rename a pair"
        )
    others = [path for path in (flags.checkpoint, flags.pose_file) if path is not None]
    claim_outputs(folder, names, force=flags.force, inputs=[flags.pc1, *inputs, *others])
    return outputs


def _predict_many(flags: PredictFlags, source: Source, poses: list[np.ndarray] | None) -> None:
    from bpfn_cli.data.clouds.pairs import PairReader
    from bpfn_cli.prediction.many import predict_pairs

    folder, outputs = flags.out or MANY, _claim_outputs(flags, source)
    predictor = _load(flags, source, f"{len(source.pairs):,} pair{'s' * (len(source.pairs) != 1)}")
    with ConsoleProgress().bar("predicting") as bar:
        done = predict_pairs(
            predictor,
            source.pairs,
            outputs,
            treatment=_treatment(flags),
            reader=PairReader(flags.columns),
            poses=poses,
            progress=bar,
        )
    _show_many(flags, folder, done, predictor.frame)
    _finish(flags, folder)


def _predict_one(flags: PredictFlags, source: Source, pose: np.ndarray | None) -> None:
    from bpfn_cli.data.clouds.pairs import PairReader
    from bpfn_cli.prediction.pair import predict_pair
    from bpfn_cli.profiling.memory import resident_bytes

    (output,) = _claim_outputs(flags, source)
    clouds = PairReader(flags.columns)(source.pairs[0])
    for cloud in clouds[:2]:
        say(f"{cloud.name}: {len(cloud.points):,} points{f' ({cloud.holds})' if cloud.holds else ''}")
    predictor = _load(flags, source, f"{len(clouds.first.points):,} and {len(clouds.second.points):,} points")
    with ConsoleProgress().bar("predicting") as bar:
        done = predict_pair(predictor, clouds, _treatment(flags), pose=pose, progress=bar)
    output.write(done, clouds.first, predictor.frame)
    figures = done.figures
    if flags.json:
        memory = {"peak_memory_mb": resident_bytes(peak=True) / 1e6}
        print_json({"out": str(output.flow), "frame": predictor.frame, **figures.as_dict(), **memory})
    else:
        echo(f"mean flow {figures.mean_flow_m:.3f} m, median flow {figures.median_flow_m:.3f} m{_motion(figures)}")
        if figures.spread_m is not None:
            echo(f"mean of {flags.average} splits, from which a single one deviates by {figures.spread_m:.3f} m")
        before, after = figures.nearest_m
        echo(f"median distance to the nearest point of PC2: {before:.3f} m, after the flow {after:.3f} m")
        if metrics := figures.metrics:
            where = f"against the flow in {source.pairs[0]}, over {figures.measured:,} points"
            zero = f"(of zero flow: {figures.true_flow_m:.4f} m)"
            echo(f"{where}: EPE3D {metrics.epe3d:.4f} m {zero}, Acc3DR {metrics.acc3d_relax:.3f}")
        for line in _motion_lines(figures.by_motion):
            echo(line)
    for line in (*_left_out(figures, flags.invalid), *figures.notes):
        say(f"note: {line}")
    _finish(flags, *output.paths)


def _load(flags: PredictFlags, source: Source, what: str) -> FlowPredictor:
    """The network with its settings. what: the data, for the line that is printed."""
    from bpfn_cli.cli.results.networks import read_network
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.frames import INTERNAL, describe_frame
    from bpfn_cli.models.predict import FlowPredictor
    from bpfn_cli.shipped import weights_title

    frame = flags.asked_frame or source.frame or INTERNAL
    weights, network, points, device = read_network(
        flags.checkpoint, points=flags.points, device=flags.device, precision=flags.precision
    )
    keep_freed_memory()
    own = f" ({network.variant.name})" if flags.checkpoint else "; for others, give --checkpoint"
    say(f"{what}; weights: {weights_title(weights)}{own}")
    why = "" if flags.asked_frame else f", {source.origin or 'the default; give --frame if the clouds have other axes'}"
    say(f"frame: {describe_frame(frame)}{why}")
    return FlowPredictor(
        network,
        points=points,
        frame=frame,
        average=flags.average,
        seed=flags.seed,
        device=device,
        precision=flags.precision,
    )


def _motion(figures: FlowFigures) -> str:
    """What is in the flow, for the line with its length."""
    if figures.residual_m is None:
        return " (with the motion of the sensor)"
    return f", {figures.residual_m:.3f} m without the motion of the sensor"


def _motion_lines(sums: ClassSums | None) -> list[str]:
    """A line for dynamic and one for static points, if they are known."""
    from bpfn_cli.prediction.pair import motion_errors

    said = []
    for name, found in (motion_errors(sums) or {}).items():
        epe3d, zero = (f"{found[key]:.4f} m" if found["points"] else "–" for key in ("epe3d", "zero_flow"))
        said.append(f"{name}: EPE3D {epe3d} (of zero flow: {zero}), over {found['points']:,} points")
    return said


def _left_out(figures: FlowFigures, invalid: Invalid) -> list[str]:
    """A sentence for each cloud with rows that are left out."""
    said = []
    for name, counts, total in zip(("PC1", "PC2"), figures.left_out, (f" of {figures.points:,}", ""), strict=True):
        if counts:
            why = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
            rows = f"; their flow is {'NaN' if invalid == 'nan' else 'zero'}" if name == "PC1" else ""
            left = sum(counts.values())
            what = "row of PC2 is" if name == "PC2" and left == 1 else f"rows of {name} are"
            said.append(f"{left:,}{total} {what} left out ({why}){rows}")
    return said


def _show_many(flags: PredictFlags, folder: Path, done: Predictions, frame: str) -> None:
    from bpfn_cli.profiling.memory import resident_bytes

    memory_mb = resident_bytes(peak=True) / 1e6
    if flags.json:
        pairs = [{"name": path.stem, "out": str(path), **each.as_dict()} for path, each in done.figures.items()]
        figures = {"pairs_per_s": done.pairs_per_s, "peak_memory_mb": memory_mb}
        print_json({"out": str(folder), "frame": frame, "pairs": pairs, **figures})
    else:
        echo(f"{len(done.figures):,} pairs, {done.pairs_per_s:.3g} pairs/s, peak memory {memory_mb:,.0f} MB")
        metrics, known = done.mean_metrics()
        if metrics is not None:
            over = f"mean over {known:,} pairs with a flow"
            echo(f"{over}: EPE3D {metrics.epe3d:.4f} m, Acc3DR {metrics.acc3d_relax:.3f}")
        for line in _motion_lines(done.by_motion()):
            echo(line)
    for holds in sorted({one for each in done.figures.values() for one in each.holds if one}):
        pairs_read = sum(holds in each.holds for each in done.figures.values())
        say(f"read: {holds}, in {pairs_read:,} pairs")
    said = {path.stem: [*_left_out(each, flags.invalid), *each.notes] for path, each in done.figures.items()}
    noted = [name for name, lines in said.items() if lines]
    for name in noted[:MOST_PAIRS_WITH_NOTES]:
        for line in said[name]:
            say(f"note: {name}: {line}")
    if len(noted) > MOST_PAIRS_WITH_NOTES:
        say(f"note: and {len(noted) - MOST_PAIRS_WITH_NOTES:,} more pairs with notes; --json lists them all")


def _finish(flags: PredictFlags, *written: Path) -> None:
    """Print what is written and, if that was not done, how to take out the motion of the sensor."""
    words, more = sys.argv[1:], ["--pose", str(ESTIMATE), *([] if flags.force else ["--force"])]
    at = words.index("--") if "--" in words else len(words)
    again = ["bpfn", *words[:at], *more, *words[at:]]
    finish(", ".join(map(str, written)), *([] if flags.pose else again))
