# SPDX-License-Identifier: MIT
"""How well the teacher's confidence tells good labels from bad ones, on scenes whose true flow is known.

python benchmarks/confidence.py --data data/kitti

For points grouped by confidence: their share, the teacher's EPE3D and the share of errors below 0.1 m. Then, for
several values of `confidence_m`: the mean confidence, and the teacher's EPE3D with points weighted by it.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.models import BiPointFlowNet, load_checkpoint
from bpfn_cli.ops import backward_errors, confidence
from bpfn_cli.recipes.reading import CONFIDENCE_M
from bpfn_cli.shipped import find_weights
from bpfn_cli.structures import FlowBatch

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
SCALES_M = (0.02, 0.05, 0.1, 0.2, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="train", help="of KITTI, `train` are the scenes not tested on")
    parser.add_argument(
        "--teacher", type=Path, default=Path("baseline"), help="a network that comes with bpfn, or a file"
    )
    parser.add_argument("--points", type=int, default=2048)
    given = parser.parse_args()
    dataset, network = open_dataset(given.data, given.split), load_checkpoint(find_weights(given.teacher)).eval()
    batches = evaluation_batches(dataset, range(len(dataset)), points=given.points, batch_size=1, seed=0)
    measured = [errors_of(network, batch) for batch in batches]
    errors, returns = (np.concatenate(each) for each in zip(*measured, strict=True))
    print(f"{dataset.kind}, {len(dataset)} scenes, {len(errors):,} points; confidence_m {CONFIDENCE_M}")
    print(tabulate(by_confidence(errors, returns), ["confidence", "points", "EPE3D [m]", "below 0.1 m"]))
    print(tabulate(by_scale(errors, returns), ["confidence_m", "mean confidence", "weighted EPE3D [m]"]))
    first, second = (np.argsort(np.argsort(values)) for values in (errors, returns))
    print(f"rank correlation of forward-backward error and error: {np.corrcoef(first, second)[0, 1]:.2f}")


@torch.no_grad()
def errors_of(network: BiPointFlowNet, batch: FlowBatch) -> tuple[np.ndarray, np.ndarray]:
    """The network's errors, and its forward-backward errors, of the points with known flow; both (N,) metres."""
    flow, backward = network(batch.pc1, batch.pc2).flows[0], network(batch.pc2, batch.pc1).flows[0]
    errors = torch.linalg.vector_norm(flow - batch.truth, dim=-1)
    known = torch.ones_like(errors, dtype=torch.bool) if batch.valid is None else batch.valid
    returns = backward_errors(batch.pc1, flow, batch.pc2, backward)
    return errors[known].double().numpy(), returns[known].double().numpy()


def by_confidence(errors: np.ndarray, returns: np.ndarray) -> list[tuple[str, ...]]:
    weights = confidence(torch.from_numpy(returns), CONFIDENCE_M).numpy()
    rows = []
    for low, high in pairwise(EDGES):
        chosen = errors[(weights >= low) & ((weights < high) | (high == 1))]
        figures = (f"{chosen.mean():.3f}", f"{(chosen < 0.1).mean():.1%}") if len(chosen) else ("-", "-")
        rows.append((f"{low:g} to {high:g}", f"{len(chosen) / len(errors):.1%}", *figures))
    return [*rows, ("all", "100.0%", f"{errors.mean():.3f}", f"{(errors < 0.1).mean():.1%}")]


def by_scale(errors: np.ndarray, returns: np.ndarray) -> list[tuple[str, ...]]:
    weights = {scale: confidence(torch.from_numpy(returns), scale).numpy() for scale in SCALES_M}
    return [
        (f"{scale:g}", f"{weight.mean():.2f}", f"{np.average(errors, weights=weight):.3f}")
        for scale, weight in weights.items()
    ]


if __name__ == "__main__":
    main()
