# SPDX-License-Identifier: MIT
"""Channels in another order compute the same, and every size that can be cut is a group."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_models import filled_model, random_pair

from bpfn_cli.models import BASELINE, VARIANTS, BiPointFlowNet, Separable, Variant, build_model, slim
from bpfn_cli.models.pruning.channels import Axis, ChannelGroup, channel_groups, reorder
from bpfn_cli.models.pruning.sizes import sizes_of

SMALL = slim(BASELINE, "small", width=0.1, c_mid=(2, 3, 4, 5, 6))
KINDS = {
    "plain": SMALL,
    "bn": replace(SMALL, bn=True),
    "separable": slim(BASELINE, "separable", width=0.25, c_mid=4, separable=True),
    "parts": slim(BASELINE, "parts", width=0.25, c_mid=4, separable=Separable((3,), (1,)), residual=(5, 6, 7, 8)),
    "bottleneck": slim(SMALL, "bottleneck", bottleneck=2, bn=True),
}


def network(variant: Variant) -> BiPointFlowNet:
    """A network whose tensors are all random, also those of batch norms."""
    torch.manual_seed(0)
    model = build_model(variant, 1024).double().eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.add_(0.2 * torch.rand_like(tensor))
    return model


@pytest.mark.parametrize("variant", KINDS.values(), ids=KINDS.keys())
def test_channels_in_another_order_compute_the_same_flow(variant: Variant) -> None:
    model, clouds = network(variant), random_pair()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = model(*clouds).flows
        reorder(model, {group: torch.arange(group.channels).flip(0) for group in channel_groups(variant)})
        found = model(*clouds).flows
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-11)
    if variant is SMALL:  # all that depends on a size has moved
        same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
        hidden = [f"weightnet.mlp_{kind}.{index}" for kind in ("convs", "bns") for index in (0, 1)]
        assert all(any(part in name for part in (*hidden, "fc.bias", "num_batches_tracked")) for name in same)


@pytest.mark.parametrize("variant", [SMALL, KINDS["bn"], *VARIANTS.values()], ids=lambda one: f"{one.name}-{one.bn}")
def test_every_size_that_can_be_cut_has_its_groups(variant: Variant) -> None:
    cuttable = {(size.field, size.level) for size in sizes_of(variant) if size.level is not None and size.step == 1}
    groups = channel_groups(variant)
    assert cuttable <= {(group.size, group.level) for group in groups}
    for group in groups:
        assert group.channels == getattr(variant.levels[group.level], group.size)


def test_numbers_of_groups_by_hand() -> None:
    """Width: two a level and one at level 4; expanded, context: one; embedding: four; estimator: three, and features;
    c_mid: three PointConvs at levels 1 to 3, two at level 0, one at level 4."""
    assert len(channel_groups(BASELINE)) == (4 * 2 + 1) + 4 + 4 + 4 * 4 + 4 * 3 + 4 + (3 * 3 + 2 + 1)


def test_axis_indices_by_hand() -> None:
    assert Axis("x", 1, start=6, step=2, times=2).indices(3).tolist() == [[6, 7], [8, 9], [10, 11]]
    assert Axis("x", 1, times=3, stride=2).indices(2).tolist() == [[0, 2, 4], [1, 3, 5]]


def test_a_missing_consumer_would_be_noticed() -> None:
    model, clouds = filled_model("weightnet4"), random_pair()
    group = next(group for group in channel_groups(model.variant) if group.size == "expanded")
    broken = ChannelGroup(group.size, group.level, group.channels, group.produced, group.axes[:-1])
    with torch.no_grad():
        expected = model(*clouds).flows[0]
        reorder(model, {broken: torch.arange(group.channels).flip(0)})
        assert not torch.allclose(model(*clouds).flows[0], expected, atol=1e-6)
