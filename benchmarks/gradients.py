# SPDX-License-Identifier: MIT
"""Shares of the losses in the gradient, as in `bpfn losses --check`, but with the errors of trained networks.

python benchmarks/gradients.py --loss basic --loss bounded

The flows of `weightnet4` and `baseline`, which come with bpfn, are moved along the line through the truth until their
mean error is the one wanted. Features are made up, as in the check.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
        share = error_m / float(errors_to_truth(output, self.batch)[0].detach().mean())
        truths = at_levels(output, self.batch.truth)
        return [truth + share * (own.detach() - truth) for own, truth in zip(output.flows, truths, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", action="append", required=True)
    parser.add_argument("--room", type=int, action="append", help="rendered rooms of the batch; default: 0 to 7")
    arguments = parser.parse_args()
    student, teacher = (load_checkpoint(find_weights(Path(name))) for name in ("weightnet4", "baseline"))
    for network in (student, teacher):
        network.encoder_features = True
    print(f"errors {ERRORS_M} m: share of the supervised gradient (aim), cosine with a shuffled teacher")
    states = Blended(student, teacher, batch_of(arguments.room or range(8)))
    for name in arguments.loss:
        found = course_of(name, states)
        shares, cosines = (" ".join(f"{x:.2f}" for x in row) for row in (found.shares, found.cosines))
        print(f"{name}: share {shares} ({found.aim:.2f}), cosine {cosines}", flush=True)


def batch_of(rooms: Sequence[int]) -> FlowBatch:
    """Rendered rooms, with different points in both clouds."""
    scenes = [_sampled(*render_scene(0, room, "val", HEIGHT)) for room in rooms]
    pc1, pc2, flow = (torch.stack(clouds) for clouds in zip(*scenes, strict=True))
    return FlowBatch(pc1, pc2, flow, tuple(f"room{room}" for room in rooms), (None,) * len(scenes))


def _sampled(pc1: np.ndarray, pc2: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    clouds, generator = (torch.from_numpy(pc1), torch.from_numpy(pc2)), torch.Generator().manual_seed(0)
    first, second = (torch.randperm(len(pc1), generator=generator)[:POINTS] for _ in range(2))
    return clouds[0][first], clouds[1][second], (clouds[1] - clouds[0])[first]


if __name__ == "__main__":
    main()
