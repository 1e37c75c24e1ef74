# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from golden_models import random_pair
from tiny_world import BIG, tiny_network

from bpfn_cli.errors import UsageError
from bpfn_cli.models import BiPointFlowNet, Variant
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning import sensitivity
from bpfn_cli.models.pruning.prune import Pruner, mean_epe3d, recover
from bpfn_cli.structures import FlowBatch


def batches(count: int = 2) -> list[FlowBatch]:
    pairs = [[cloud.float() for cloud in random_pair(seed=seed)] for seed in range(count)]
    return [FlowBatch(pc1, pc2, torch.full_like(pc1, 0.1), ("a",)) for pc1, pc2 in pairs]


def macs(variant: Variant) -> float:
    return cost_of(variant, 1024).macs


@pytest.fixture(scope="module")
def pruner() -> Pruner:
    pruner = Pruner(tiny_network(4, BIG))
    pruner.order("taylor", batches())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "MEASURED_SHARES", (0.5,))
        pruner.measure(batches(1))
    return pruner


def test_the_network_is_copied_and_its_flow_stays(pruner: Pruner) -> None:
    given, one = tiny_network(4, BIG), batches()[0]
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    with torch.no_grad():
        expected, found = (model(one.pc1, one.pc2).flows[0] for model in (given, pruner.teacher))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    Pruner(given).order("l1", [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())


def test_recovery_brings_the_flow_closer_to_the_teachers(pruner: Pruner) -> None:
    def distance(student: BiPointFlowNet) -> float:
        with torch.no_grad():
            pairs = [
                (student(one.pc1, one.pc2).flows[0], pruner.teacher(one.pc1, one.pc2).flows[0]) for one in batches()
            ]
        return sum(float((own - target).norm(dim=-1).mean()) for own, target in pairs)

    student = pruner.cut(pruner.fit(macs, 0.5 * macs(BIG)))
    before = distance(student)
    recover(student, pruner.teacher, batches(), steps=30)
    assert not student.training
    assert distance(student) < 0.9 * before


def test_latency_is_fitted_by_measuring(pruner: Pruner) -> None:
    def latency(variant: Variant) -> float:  # what does not depend on sizes, as sampling does not, and MACs
        return 5 + 20 * macs(variant) / macs(BIG)

    found = pruner.fit_latency(latency, 15.0, macs)
    assert abs(latency(found) - 15) <= 1.5
    with pytest.raises(UsageError, match=r"no network with a latency within 10 % of 1 ms; the nearest takes \d"):
        pruner.fit_latency(latency, 1.0, macs)
    with pytest.raises(UsageError, match=r"within 10 % of 100 ms; the nearest takes 25 ms"):
        pruner.fit_latency(latency, 100.0, macs)


def test_mean_error_over_batches_by_hand(pruner: Pruner) -> None:
    with torch.no_grad():
        errors = [(pruner.teacher(one.pc1, one.pc2).flows[0] - 0.1).norm(dim=-1).mean() for one in batches()]
    assert mean_epe3d(pruner.teacher, batches()) == pytest.approx(float(sum(errors)) / 2)
