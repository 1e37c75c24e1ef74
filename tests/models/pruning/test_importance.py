# SPDX-License-Identifier: MIT
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_models import random_pair

from bpfn_cli.models import BASELINE, BiPointFlowNet, build_model, slim
from bpfn_cli.models.pruning.channels import ChannelGroup, channel_groups
from bpfn_cli.models.pruning.importance import channel_orders, epe3d, l1, taylor
from bpfn_cli.structures import FlowBatch

SMALL = slim(BASELINE, "small", width=0.1, c_mid=3)


def network(bn: bool = False) -> BiPointFlowNet:
    torch.manual_seed(3)
    return build_model(replace(SMALL, bn=bn), 1024).double().eval()


def batch(seed: int = 0) -> FlowBatch:
    pc1, pc2 = random_pair(seed=seed)
    return FlowBatch(pc1, pc2, torch.ones_like(pc1), ("a",))


def weakened(model: BiPointFlowNet, group: ChannelGroup, channel: int, by: float) -> BiPointFlowNet:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for axis in group.produced:
        state[axis.tensor][channel] *= 1 - by
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("bn", [False, True])
def test_taylor_is_the_slope_of_the_error_as_a_channel_fades(bn: bool) -> None:
    model, batches, step = network(bn), [batch(), batch(1)], 1e-6
    groups = channel_groups(model.variant)
    scores = taylor(model, groups, batches)
    for group in groups[::12]:
        with torch.no_grad():
            slopes = []
            for one in batches:
                before = epe3d(network(bn), one)
                slopes.append(abs(epe3d(weakened(network(bn), group, 1, step), one) - before) / step)
        torch.testing.assert_close(scores[group][1], torch.stack(slopes).mean(), rtol=1e-3, atol=1e-8)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_channel_that_does_nothing_comes_last() -> None:
    model, groups = network(), channel_groups(SMALL)
    for group in groups:
        weakened(model, group, 0, by=1.0)
    scores, orders = taylor(model, groups, [batch()]), channel_orders(model, groups, "taylor", [batch()])
    for group in groups:
        assert scores[group][0] == 0
        assert scores[group][orders[group]].diff().le(0).all()
    assert sum(bool((scores[group][1:] > 0).all()) for group in groups) > 40  # the rest have dead ReLUs


def test_l1_by_hand() -> None:
    model = network()
    group = next(group for group in channel_groups(SMALL) if group.size == "context" and group.level == 3)
    layer = model.deconv4_3.composed_module[0]
    torch.testing.assert_close(l1(model, [group])[group], layer.weight.abs().sum(dim=(1, 2)) + layer.bias.abs())


def test_first_keeps_the_order() -> None:
    groups = channel_groups(SMALL)
    orders = channel_orders(network(), groups, "first")
    assert all(order.tolist() == list(range(group.channels)) for group, order in orders.items())


def test_error_where_the_flow_is_known_by_hand() -> None:
    model, one = network(), batch()
    known = torch.zeros(1, 1024, dtype=torch.bool)
    known[0, 5] = True
    with torch.no_grad():
        flow = model(one.pc1, one.pc2).flows[0]
        error = epe3d(model, replace(one, valid=known))
    torch.testing.assert_close(error, (flow[0, 5] - 1).norm()[None])
