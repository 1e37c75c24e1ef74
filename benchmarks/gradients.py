# SPDX-License-Identifier: MIT
"""Shares of the losses in the gradient, as in `bpfn losses --check`, but with the errors of trained networks.

python benchmarks/gradients.py --loss basic --loss bounded

The flows of `weightnet4` and `baseline`, which come with bpfn, are moved along the line through the truth until their
mean error is the one wanted. Features are made up, as in the check.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from bpfn_cli.data.synthetic.render import render_scene
from bpfn_cli.losses.supervised import at_levels, errors_to_truth
from bpfn_cli.models import load_checkpoint
from bpfn_cli.shipped import find_weights
from bpfn_cli.strategies.gradient_checks import ERRORS_M, States, course_of
from bpfn_cli.structures import FlowBatch, FlowPyramid

POINTS, HEIGHT = 1024, 135


class Blended(States):
    """States whose flows are those of trained networks, moved towards the truth or away from it."""

    def flows(self, output: FlowPyramid, error_m: float, who: str) -> list[Tensor]:
        share = error_m / float(errors_to_truth(output, self.batch)[0].mean())
        truths = at_levels(output, self.batch.flow)
        return [truth + share * (own.detach() - truth) for own, truth in zip(output.flows, truths, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", action="append", required=True)
    parser.add_argument("--room", type=int, action="append", help="rendered rooms; default: 3, 5 and 9")
    arguments = parser.parse_args()
    student, teacher = (load_checkpoint(find_weights(Path(name))) for name in ("weightnet4", "baseline"))
    for network in (student, teacher):
        network.encoder_features = True
    print(f"errors {ERRORS_M} m: share of the supervised gradient (aim), cosine with a shuffled teacher")
    for room in arguments.room or (3, 5, 9):
        states = Blended(student, teacher, room_batch(room))
        for name in arguments.loss:
            found = course_of(name, states)
            shares, cosines = (" ".join(f"{x:.2f}" for x in row) for row in (found.shares, found.cosines))
            print(f"room {room}, {name}: share {shares} ({found.aim:.2f}), cosine {cosines}", flush=True)


def room_batch(index: int) -> FlowBatch:
    """One rendered room, with different points in both clouds."""
    pc1, pc2 = (torch.from_numpy(cloud) for cloud in render_scene(0, index, "val", HEIGHT))
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randperm(len(pc1), generator=generator)[:POINTS] for _ in range(2))
    return FlowBatch(pc1[first][None], pc2[second][None], (pc2 - pc1)[first][None], (f"room{index}",), (None,))


if __name__ == "__main__":
    main()
