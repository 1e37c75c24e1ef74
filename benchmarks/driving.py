# SPDX-License-Identifier: MIT
"""Statistics of driving scenes beside those of a dataset: median over scenes (5 % and 95 % quantiles), and their speed.

python benchmarks/driving.py --data data/kitti
"""

import argparse
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
from bpfn_cli.ops.rigid import moving_points, rigid_motion


def statistics(pc1: np.ndarray, flow: np.ndarray) -> dict[str, float]:
    """Figures of one scene: pc1, flow (N, 3), metres, internal frame. The camera's motion is that of most points."""
    points, motion = (torch.from_numpy(x).double()[None] for x in (pc1, flow))
    moving = moving_points(points, motion)
    rotation, translation = rigid_motion(points, motion, (~moving).double())
    length = np.linalg.norm(flow, axis=1).mean()
    return {
        "mean flow length [m]": float(length),
        "mean flow above 1 m [%]": 100.0 * (length > 1),
        "mean flow above 2 m [%]": 100.0 * (length > 2),
        "camera motion forward [m]": -float(translation[0, 0, 2]),
        "camera yaw [degrees]": -math.degrees(math.atan2(rotation[0, 0, 2], rotation[0, 2, 2])),
        "median depth [m]": float(np.median(pc1[:, 2])),
        "median height above the camera [m]": float(np.median(pc1[:, 1])),
        "points that move differently from most [%]": 100 * float(moving.double().mean()),
    }


def summary(scenes: Iterable[dict[str, float]]) -> dict[str, str]:
    """Each figure over the scenes; of a share, its mean."""
    rows = list(scenes)
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        is_share = "above" in name and "%" in name
        found[name] = f"{np.mean(values):.0f}" if is_share else f"{middle:.2f} ({low:.2f} to {high:.2f})"
    return found


def main() -> None:
    """Print the table and the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--split", default="train", help="of the dataset; of KITTI, `train` are the scenes not tested on"
    )
    parser.add_argument("--scenes", type=int, default=150, help="driving scenes")
    given = parser.parse_args()
    options, start = DrivingOptions(train=given.scenes), time.process_time()
    pairs = [options.render("train", index) for index in range(given.scenes)]
    seconds = (time.process_time() - start) / given.scenes
    dataset = open_dataset(given.data, given.split)
    driving = summary(statistics(pc1, pc2 - pc1) for pc1, pc2 in pairs)
    other = summary(statistics(scene.pc1, scene.truth) for scene in map(dataset.load, range(len(dataset))))
    rows = [(name, driving[name], other[name]) for name in driving]
    print(tabulate(rows, ["", f"driving, {given.scenes}", f"{dataset.kind}, {len(dataset)}"], disable_numparse=True))
    print(f"rendering: {1e3 * seconds:.0f} ms of one core per scene of up to {options.points} points")


if __name__ == "__main__":
    main()
