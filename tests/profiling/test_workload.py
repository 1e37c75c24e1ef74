# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from tiny_world import LEAST, TINY

from bpfn_cli.errors import UsageError
from bpfn_cli.profiling.workload import MOST_POINTS, Case, Workload, synthetic_batch
from bpfn_cli.structures import MAX_DEPTH_M


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"points": LEAST - 1}, f"--points {LEAST - 1}"),
        ({"points": 0}, "--points 0"),
        ({"points": MOST_POINTS + 1}, f"{MOST_POINTS}"),
        ({"points": LEAST, "batch": 0}, "--batch 0"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Case(TINY, **sizes)


@pytest.mark.parametrize("points", [1, 8192])
def test_scenes_are_those_of_the_synthetic_data(points: int) -> None:
    batch = synthetic_batch(points, 2)
    assert batch.pc1.shape == batch.pc2.shape == batch.flow.shape == (2, points, 3)
    assert torch.cat([batch.pc1, batch.pc2])[..., 2].max() < MAX_DEPTH_M
    assert all(len(cloud.unique(dim=0)) == points for cloud in batch.pc1)
    assert not torch.equal(batch.pc1[0], batch.pc1[1])
    again = synthetic_batch(points, 2)
    assert torch.equal(again.pc1, batch.pc1)
    assert torch.equal(again.pc2, batch.pc2)
    # The camera and a few bodies move: most points of the first cloud end near some point of the second.
    if points > 1:
        moved = torch.cdist(batch.pc1[:1, :500] + batch.flow[:1, :500], batch.pc2[:1]).amin(dim=-1)
        still = torch.cdist(batch.pc1[:1, :500], batch.pc2[:1]).amin(dim=-1)
        assert moved.median() < 0.8 * still.median()


def test_training_leaves_gradients_and_inference_none() -> None:
    state = torch.random.get_rng_state()
    inference, training = (Workload(Case(TINY, LEAST, training=training)) for training in (False, True))
    inference.run()
    training.run()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (inference.model.training, training.model.training) == (False, True)
    assert not any(parameter.grad is not None for parameter in inference.model.parameters())
    assert sum(parameter.grad is not None for parameter in training.model.parameters()) > 100
    weights = zip(inference.model.parameters(), training.model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in weights)
