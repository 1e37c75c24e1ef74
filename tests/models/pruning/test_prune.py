# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from golden_models import random_pair
from tiny_world import BIG, guess_sensitivities, tiny_network

from bpfn_cli.errors import NonFiniteError, UsageError
from bpfn_cli.models import BiPointFlowNet, Variant, prune
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning import sensitivity
from bpfn_cli.models.pruning.prune import ErrorAboveLimit, Goal, Pruned, Pruner, Scenes, mean_epe3d, recover
from bpfn_cli.progress import NoProgress
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


def test_mean_error_over_the_scenes_of_uneven_batches_by_hand(pruner: Pruner) -> None:
    first, second, third = batches(3)
    both = replace(first, pc1=torch.cat([first.pc1, second.pc1]), pc2=torch.cat([first.pc2, second.pc2]))
    both = replace(both, flow=torch.full_like(both.pc1, 0.1), names=("a", "b"))
    with torch.no_grad():
        errors = [(pruner.teacher(one.pc1, one.pc2).flows[0] - 0.1).norm(dim=-1).mean() for one in batches(3)]
    assert mean_epe3d(pruner.teacher, [both, third]) == pytest.approx(float(sum(errors)) / 3)


def test_an_error_that_is_no_number_is_reported(pruner: Pruner) -> None:
    unknown = [replace(one, flow=one.truth + float("nan")) for one in batches(1)]
    with pytest.raises(NonFiniteError, match="EPE3D of big is nan"):
        mean_epe3d(pruner.teacher, unknown)


class Imagined(Pruner):
    """Its networks have an error that follows from their MACs, and that a recovery lowers."""

    def __init__(self, pruner: Pruner, gain: float = 0.5):
        self.teacher, self.sensitivities, self.name, self.gain = pruner.teacher, pruner.sensitivities, "small", gain
        self.made: list[tuple[float, int]] = []

    def make(self, variant: Variant, scenes: Scenes, steps: int, *_: object) -> Pruned:
        self.made.append((macs(variant) / macs(BIG), steps))
        excess = 1 - macs(variant) / macs(BIG)
        model = type("Sized", (), {"variant": variant})
        return Pruned(model, steps, 1 + excess, 1 + self.gain * excess if steps else None)  # type: ignore[arg-type]

    def smallest(self, limit_m: float, steps: int, least: float | None = None) -> float | None:
        found = self.smallest_within(macs, limit_m, Scenes([], []), steps, NoProgress(), least)
        return None if found is None else macs(found.model.variant) / macs(BIG)


@pytest.mark.parametrize(("steps", "share"), [(0, 0.8), (5, 0.6)])
def test_smallest_network_within_an_error_by_hand(pruner: Pruner, steps: int, share: float) -> None:
    imagined = Imagined(pruner)
    assert imagined.smallest(1.2, steps) == pytest.approx(share, rel=0.05)
    assert len(imagined.made) <= 6 + 4 + 1


def test_nothing_smaller_is_within_the_error(pruner: Pruner) -> None:
    assert Imagined(pruner).smallest(1.0, 5) is None


def test_a_recovery_that_harms_is_left_out(pruner: Pruner) -> None:
    imagined = Imagined(pruner, gain=5.0)
    found = imagined.smallest_within(macs, 1.2, Scenes([], []), 5, NoProgress())
    assert imagined.made[-1][1] == 5  # tried with a recovery at last
    assert found is not None
    assert (found.recovery_steps, found.epe3d_m) == (0, pytest.approx(1.2, abs=0.05))


def test_smaller_costs_than_the_least_are_not_tried(pruner: Pruner) -> None:
    imagined = Imagined(pruner)
    assert imagined.smallest(1.2, 5, least=0.7 * macs(BIG)) > 0.7  # type: ignore[operator]
    assert min(share for share, _ in imagined.made) > 0.7


def test_goal_with_an_error_that_is_allowed(pruner: Pruner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is 1.0 of the whole network, and 1.5 of half of it."""
    monkeypatch.setattr("bpfn_cli.models.pruning.prune.mean_epe3d", lambda *_: 1.0)
    imagined, scenes = Imagined(pruner), Scenes([], [])
    monkeypatch.setattr(imagined, "prepare", lambda *_, **__: None)

    def reached(share: float, choose: Callable[[Pruner], Variant] | None) -> tuple[float, float]:
        made, limit = imagined.reach(Goal(macs, choose, share), scenes, "l1", 0, NoProgress())
        assert limit is not None
        return made.epe3d_m, limit.limit_m

    def half(one: Pruner) -> Variant:
        return one.fit(macs, 0.5 * macs(BIG))

    assert reached(0.6, half) == pytest.approx((1.5, 1.6), abs=0.02)
    assert reached(0.2, None) == pytest.approx((1.2, 1.2), abs=0.02)
    with pytest.raises(ErrorAboveLimit, match=r"is 1\.5\d* m; it must stay within 20 % of the teacher's") as refused:
        reached(0.2, half)
    assert refused.value.nearest is not None
    assert macs(refused.value.nearest) == pytest.approx(0.8 * macs(BIG), rel=0.05)
    with pytest.raises(ErrorAboveLimit, match="no smaller network was found") as refused:
        reached(0.0, None)
    assert refused.value.nearest is None


def test_prune_from_python(pruner: Pruner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pruner, "measure", guess_sensitivities)
    teacher, budget = tiny_network(4, BIG), 0.7 * macs(BIG)
    model, report = prune(teacher, budget, batches(1), batches(2), points=1024, recovery_steps=1, importance="l1")
    assert 0.98 * budget <= macs(model.variant) <= budget
    assert (model.variant.name, report.epe3d.scenes, report.recovery_steps) == ("pruned", 2, 1)
    assert report.epe3d.recovered_m == mean_epe3d(model, batches(2))
    assert [(one.step, one.macs) for one in report.history] == [("teacher", macs(BIG)), ("pruned", macs(model.variant))]
    with pytest.raises(UsageError, match="nothing to cut"):
        prune(teacher, 2 * macs(BIG), batches(1), points=1024)
    with pytest.raises(UsageError, match="at least one batch"):
        prune(teacher, budget, [], points=1024)
