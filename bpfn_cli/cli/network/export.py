# SPDX-License-Identifier: MIT
"""`bpfn export`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from bpfn_cli.choices import Calibration, ExportFormat, Frame, Storage
from bpfn_cli.cli import options
from bpfn_cli.cli.console import console, echo, finish, print_json, say

if TYPE_CHECKING:
    from bpfn_cli.history import Step
    from bpfn_cli.models import Checkpoint
    from bpfn_cli.models.exported import Comparison
    from bpfn_cli.models.exported.base import Clouds, Format
    from bpfn_cli.models.fake_quantization import Ranges

POINTS = Option("--points", help="Points of each cloud, or `dynamic` (the default of onnx).", metavar="N|dynamic")
PAIR = Option("--pair", help="Two clouds to compare on.", metavar="PC1 PC2")
FRAME = Option("--frame", help="Axes of the clouds of --pair; see `bpfn predict --help`.")
CALIBRATE = Option("--calibrate", help="How int8 measures ranges; default: percentile, unless they were learned.")
SCENES = Option("--scenes", min=4, max=10**4, help="Scenes to calibrate int8 with; default: 8.", metavar="N")
DYNAMIC = "dynamic"
DEFAULT_SCENES = 8
CALIBRATION_POINTS = 2048  # of each cloud, for files that take any number


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """What `bpfn export` takes."""

    checkpoint: options.CheckpointFile = None
    format: Annotated[ExportFormat | None, Option("--format", help="Default: by the suffix of --out, or onnx.")] = None
    out: Annotated[Path | None, options.out("the file; default: the name of the network, such as weightnet4.onnx")] = (
        None
    )
    points: Annotated[str | None, POINTS] = None
    precision: Annotated[Storage, Option("--precision", help="Type of the weights in the file.")] = "float32"
    pair: Annotated[tuple[str, str] | None, PAIR] = None
    data: Annotated[
        Path | None,
        options.path(
            "--data", help="Dataset to calibrate int8 with, and to compare on its first scene.", metavar="DIR"
        ),
    ] = None
    calibrate: Annotated[Calibration | None, CALIBRATE] = None
    scenes: Annotated[int | None, SCENES] = None
    frame: Annotated[Frame | None, FRAME] = None
    force: options.Force = False
    json: options.Json = False


@options.takes(ExportFlags)
def export(flags: ExportFlags) -> None:
    """Write a network to a file that other programs run, and compare it with the original.

    onnx: standard operators, for onnxruntime. torch: a program for torch (.pt2). pth: weights for the code of the
    published network. safetensors: weights for bpfn.

    The flows of both are compared on a pair of clouds: that of --pair, the first test scene of --data, or a synthetic
    scene. If they differ by more than the precision explains, nothing is written. With float16 and bfloat16, only the
    weights in the file are smaller; everything is computed in float32.

    int8: an onnx file computes with int8 weights and 8-bit inputs of the layers. Their ranges come from training with
    `bpfn distill --quantize int8`, or are measured on scenes of --data, or on rendered driving scenes. Coordinates,
    distances, neighbors and interpolation stay in float32.

    \b
    Examples:
      $ bpfn export                                                     # weightnet4 to weightnet4.onnx
      $ bpfn export --checkpoint mine.safetensors --out mine.onnx       # your own network
      $ bpfn export --points 8192 --precision float16 --out small.onnx  # fixed size, half the file
      $ bpfn export --precision int8 --data data/kitti --out int8.onnx  # a quarter of the file
      $ bpfn export --pair a.ply b.ply --frame lidar                    # compare on your own clouds
      $ bpfn export --format torch --points 8192                        # weightnet4.pt2
    """
    from bpfn_cli.cli.results.evaluate import read_weights
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.errors import UsageError, printable
    from bpfn_cli.files import claim_output, expanded, made_folder
    from bpfn_cli.history import KEY, plain_steps
    from bpfn_cli.models import build_from
    from bpfn_cli.models import export as export_network
    from bpfn_cli.models.exported import FORMATS, TOLERANCE_M, format_of
    from bpfn_cli.profiling.trial import trial_pair
    from bpfn_cli.reporting.history import history_table
    from bpfn_cli.reporting.terminal import print_table
    from bpfn_cli.shipped import weights_title

    if flags.pair is not None and flags.data is not None and flags.precision != "int8":
        raise UsageError("--pair and --data: use only one of them")
    for name, given in (("calibrate", flags.calibrate), ("scenes", flags.scenes)):
        if given is not None and flags.precision != "int8":
            raise UsageError(f"--{name}: has no effect with --precision {flags.precision}; use --precision int8")
    if flags.frame is not None and flags.pair is None:
        raise UsageError("--frame: has no effect without --pair; leave it out")
    points = _points(flags.points)
    path, read = read_weights(flags.checkpoint)
    chosen = FORMATS[flags.format or "onnx"] if flags.format or flags.out is None else format_of(flags.out)
    out = flags.out or Path(f"{read.variant.name}{chosen.suffix}")
    if out.suffix != chosen.suffix:
        raise UsageError(f"--out {out}: the format {chosen.name} has the suffix {chosen.suffix}")
    if flags.points == DYNAMIC and not chosen.any_points:
        raise UsageError(f"--points {DYNAMIC}: a {chosen.name} file has a fixed number of points; give it")
    files = None if flags.pair is None else (expanded(flags.pair[0]), expanded(flags.pair[1]))
    with made_folder(out.parent):
        claim_output(out, force=flags.force, inputs=[path, *(files or ())])
        keep_freed_memory()
        say(f"weights: {weights_title(path)}; format: {chosen.name} ({chosen.title})")
        ranges, scenes = _calibration(flags, chosen, read, printable(path), points)
        pair = trial_pair(files, None if files else flags.data, points or read.num_points, flags.frame)
        found = export_network(
            build_from(read),
            out,
            pair,
            format=chosen,
            points=points,
            stored=flags.precision,
            metadata={**read.metadata, "exported_from": path.name},
            ranges=ranges,
            scenes=scenes,
            calibration=flags.calibrate or "percentile",
        )
    size, steps = out.stat().st_size, _steps(flags, chosen, read, path, out, found[0], pair.name)
    if flags.json:
        results = [asdict(one) for one in found]
        about = {"out": str(out), "format": chosen.name, "precision": flags.precision, "bytes": size}
        about |= {"pair": pair.name, "tolerance_m": TOLERANCE_M[flags.precision], "comparisons": results}
        print_json(about | ({KEY: plain_steps(steps)} if steps else {}))
    else:
        for one in found:
            echo(_line(one, pair.name))
        if steps:
            print_table(history_table(out.name, steps), console())
    say(f"{size / 1e6:.1f} MB")
    finish(out, *(("bpfn", "predict", "a.ply", "b.ply", "--checkpoint", out) if out.suffix == ".onnx" else ()))


def _steps(
    flags: ExportFlags, chosen: Format, read: Checkpoint, path: Path, out: Path, compared: Comparison, pair: str
) -> tuple[Step, ...]:
    """The steps that made the network, and this one; none if they are not known."""
    from bpfn_cli.files import sha256_of
    from bpfn_cli.shipped import history_of

    steps = history_of(read.metadata, sha256_of(path))
    if not steps:
        return ()
    on = f"{pair}, {compared.points} points"
    made = {"step": f"{chosen.name}, {flags.precision}", "bytes": out.stat().st_size, "sha256": sha256_of(out)}
    measured = {"epe3d_m": compared.exported_epe3d_m, "on": on, "moved_m": None}
    return (*steps, steps[-1].model_copy(update={**made, **measured}))


def _calibration(
    flags: ExportFlags, chosen: Format, read: Checkpoint, name: str, points: int | None
) -> tuple[Ranges | None, list[Clouds]]:
    """Learned ranges, or else the scenes to measure them on, where the format computes in int8."""
    from bpfn_cli.models.fake_quantization import parse_ranges
    from bpfn_cli.profiling.trial import calibration_scenes

    if flags.precision != "int8" or not chosen.computes_int8:
        return None, []
    ranges = parse_ranges(read.metadata, name)
    if ranges is not None and flags.calibrate is None:
        say("int8: with the ranges learned in training")
        return ranges, []
    count, drawn = flags.scenes or DEFAULT_SCENES, points or max(CALIBRATION_POINTS, read.variant.least_points)
    where = "rendered driving scenes" if flags.data is None else f"scenes of {flags.data}"
    say(f"int8: calibrating ({flags.calibrate or 'percentile'}) with {count} {where} of {drawn:,} points")
    return None, calibration_scenes(flags.data, count, drawn)


def _points(text: str | None) -> int | None:
    """None: any number, or the format's default."""
    from bpfn_cli.errors import UsageError

    if text is None or text == DYNAMIC:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise UsageError(f"--points {text}: use a number, or {DYNAMIC}")
    return int(text)


def _line(one: Comparison, name: str) -> str:
    errors = ""
    if one.epe3d_m is not None and one.exported_epe3d_m is not None:
        errors = f"; EPE3D {one.epe3d_m:.4f} m, exported {one.exported_epe3d_m:.4f} m"
    differs = f"flow differs by at most {one.largest_m:.2g} m, median {one.median_m:.2g} m"
    return f"{name}, {one.points:,} points: {differs}{errors}"
