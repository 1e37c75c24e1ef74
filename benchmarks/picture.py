# SPDX-License-Identifier: MIT
"""The picture at the top of the README: a rendered driving scene with the flow of `weightnet4`.

python benchmarks/picture.py --out docs/scene.png
"""

import argparse
from pathlib import Path

import numpy as np

from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
from bpfn_cli.models import build_from, read_checkpoint
from bpfn_cli.models.predict import predict_flow
from bpfn_cli.shipped import DEFAULT, shipped_network
from bpfn_cli.viewing.scene import Scene
from bpfn_cli.viewing.still import write_still

SCENE, POINTS = 11, 8192


def rendered_scene(index: int, points: int) -> Scene:
    """A test scene of the driving scenes; its clouds are drawn independently. Args: points: of each cloud."""
    first, second = DrivingOptions().render("val", index)
    rng = np.random.default_rng(0)
    rows, rows2 = (rng.permutation(len(first))[:points] for _ in range(2))
    pc1, pc2 = first[rows], second[rows2]
    read = read_checkpoint(shipped_network(DEFAULT).path)
    flow = predict_flow(build_from(read), pc1, pc2, points=read.num_points)
    return Scene("synthetic driving scene", pc1, pc2, {DEFAULT: flow}, second[rows] - pc1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.add_argument("--scene", type=int, default=SCENE, metavar="N", help="number of the test scene")
    options = parser.parse_args()
    write_still(rendered_scene(options.scene, POINTS), options.out, dots_per_inch=96)


if __name__ == "__main__":
    main()
