# SPDX-License-Identifier: MIT
"""Write a network for other programs, after a comparison with what bpfn computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bpfn_cli.choices import Calibration, Storage
from bpfn_cli.errors import CheckpointError, ShapeError, UsageError, printable
from bpfn_cli.files import write_atomic
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.exported.base import Clouds, Format, Request, Runner, fast_copy
from bpfn_cli.models.exported.formats import format_of
from bpfn_cli.models.fake_quantization import Ranges
from bpfn_cli.rng import keyed_generator

# Largest median difference of a point's flow, and largest difference of EPE3D, in metres.
TOLERANCE_M: dict[Storage, float] = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 5e-2, "int8": 1e-1}
FEWEST_SCENES = 4  # to calibrate with
MOST_POINTS = 2**16  # an exported graph compares each point with each, and chooses samples one after the other


@dataclass(frozen=True)
class Pair:
    """Clouds (N, 3), (M, 3) float32 metres in the internal frame; flow: (N, 3) from pc1, NaN where unknown; None."""

    name: str
    pc1: np.ndarray
    pc2: np.ndarray
    flow: np.ndarray | None = None


@dataclass(frozen=True)
class Comparison:
    """A network as bpfn computes it, and as exported, on points of one pair.

    Attributes:
        points: of each cloud. largest_m, median_m: difference of a point's flow.
        epe3d_m, exported_epe3d_m: errors of both; None: the true flow is unknown.
    """

    points: int
    largest_m: float
    median_m: float
    epe3d_m: float | None
    exported_epe3d_m: float | None

    def exceeds(self, tolerance_m: float) -> bool:
        """Whether the median, or the change of EPE3D, is larger. NaN exceeds everything."""
        change = 0.0 if self.epe3d_m is None or self.exported_epe3d_m is None else self.exported_epe3d_m - self.epe3d_m
        return not (self.median_m <= tolerance_m and abs(change) <= tolerance_m)


def export(
    model: BiPointFlowNet,
    path: str | Path,
    pair: Pair,
    *,
    format: Format | None = None,
    points: int | None = None,
    stored: Storage = "float32",
    tolerance_m: float | None = None,
    metadata: Mapping[str, Any] | None = None,
    ranges: Ranges | None = None,
    scenes: Sequence[Clouds] = (),
    calibration: Calibration = "percentile",
) -> list[Comparison]:
    """Write a network to a file, atomically, if it computes the same flow there.

    Args:
        pair: to compare on. format: of the file; None: by its suffix. points: per cloud; None: any number, where the
            format can. stored: type of the weights in the file. tolerance_m: None: by `stored`, from TOLERANCE_M.
        ranges: of the inputs of layers that compute in int8, as learned; None: measured on `scenes` by `calibration`.
    Returns: a comparison for each number of points that was tried: two where any number is accepted.
    Raises: UsageError: points out of range, too few scenes, or what the format says. ShapeError: the pair has too few
        points. CheckpointError: the flows differ; nothing is written. DiskError.
    """
    path, least = Path(path), model.variant.least_points
    chosen = format or format_of(path)
    points = model.num_points if points is None and not chosen.any_points else points
    if points is not None:
        check_points(points, model)
    if stored not in chosen.stores:
        raise UsageError(f"--precision {stored}: a {chosen.name} file has {', '.join(chosen.stores)}")
    if stored == "int8" and chosen.computes_int8 and ranges is None and len(scenes) < FEWEST_SCENES:
        raise UsageError(f"--scenes {len(scenes)}: calibration needs {FEWEST_SCENES} scenes or more")
    model = fast_copy(model)
    most = min(len(pair.pc1), len(pair.pc2))
    if most < (points or least):
        raise ShapeError(f"{pair.name}: {most} points, {points or least} are needed; give a denser pair")
    content = chosen.write(model, Request(points, stored, metadata or {}, ranges, scenes, calibration))
    runner = chosen.read(content, printable(path))
    counts = [points] if points else sorted({min(most, model.num_points), min(most, least + 1)})
    found = [compare(model, runner, pair, count) for count in counts]
    tolerance_m = TOLERANCE_M[stored] if tolerance_m is None else tolerance_m
    for one in found:
        if one.exceeds(tolerance_m):
            by = f"median {one.median_m:.2g} m, largest {one.largest_m:.2g} m"
            raise CheckpointError(f"{printable(path)}: not written: its flow differs by {by} on {pair.name}")
    write_atomic(path, content)
    return found


def check_points(points: int, model: BiPointFlowNet) -> None:
    """Raises: UsageError: an exported file cannot have so few or so many."""
    if not (least := model.variant.least_points) <= points <= MOST_POINTS:
        raise UsageError(f"--points {points}: use {least} to {MOST_POINTS}; larger clouds are predicted in parts")


def compare(model: BiPointFlowNet, runner: Runner, pair: Pair, points: int) -> Comparison:
    """Compare two networks on `points` random points of each cloud."""
    generator = keyed_generator(0, pair.name, points)
    rows1, rows2 = (generator.choice(len(cloud), points, replace=False) for cloud in (pair.pc1, pair.pc2))
    clouds = [torch.from_numpy(cloud[rows])[None] for cloud, rows in ((pair.pc1, rows1), (pair.pc2, rows2))]
    with torch.no_grad():
        own, exported = (run[0].double().numpy() for run in (model(*clouds).flows[0], runner(*clouds)))
    lengths = np.linalg.norm(exported - own, axis=1)
    errors: list[float | None] = [None, None]
    if pair.flow is not None:
        truth = pair.flow[rows1]
        known = np.isfinite(truth).all(axis=1)
        errors = [float(np.linalg.norm((flow - truth)[known], axis=1).mean()) for flow in (own, exported)]
    return Comparison(points, float(lengths.max()), float(np.median(lengths)), *errors)
