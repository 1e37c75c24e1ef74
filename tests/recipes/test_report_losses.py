# SPDX-License-Identifier: MIT
"""The recipes in configs/reports/ train the losses of the compression reports, written out here once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import TINY, batch_of, network

from bpfn_cli.losses import Objective, build_losses
from bpfn_cli.models import slim
from bpfn_cli.recipes.early_stop import EarlyStop
from bpfn_cli.recipes.reading import load_recipe
from bpfn_cli.structures import FlowBatch, FlowPyramid

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "reports").glob("*.yaml"))
STUDENT = replace(slim(TINY, "student", c_mid=1))  # features as wide as the teacher's, as in weightnet4
Case = tuple[FlowPyramid, FlowPyramid, FlowBatch]


@cache
def case(seed: int) -> Case:
    batch, student, teacher = batch_of(2, seed), network(STUDENT, 1), network()
    with torch.no_grad():
        return student(batch.pc1, batch.pc2), teacher(batch.pc1, batch.pc2), batch


def reduced(output: FlowPyramid, finest: Tensor) -> Tensor:
    """R: `finest`, a flow of all points, at the sample points of each level."""
    value, target = torch.zeros(()), finest
    for level, weight in enumerate((0.02, 0.04, 0.08, 0.16)):
        if level:
            target = torch.stack(
                [rows[index] for rows, index in zip(target, output.sample_indices1[level], strict=True)]
            )
        value = value + weight * (output.flows[level] - target).square().sum(2).sqrt().sum(1).mean()
    return value


def basic(own: FlowPyramid, other: FlowPyramid, batch: FlowBatch, gamma: float) -> Tensor:
    return gamma * reduced(own, other.flows[0]) + (1 - gamma) * reduced(own, batch.flow)


def squares(student: Tensor, teacher: Tensor) -> Tensor:
    return ((student - teacher) ** 2).sum() / 2


def scratch(one: Objective, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> Tensor:
    return reduced(own, batch.flow)


def hint(one: Objective, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> Tensor:
    first = own.encoder_source[0].numel()
    return basic(own, other, batch, 0.3) + squares(own.encoder_source[3], other.encoder_source[3]) / first


def bihint(one: Objective, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> Tensor:
    first = squares(own.encoder_source[3], other.encoder_source[3])
    second = squares(own.encoder_target[3], other.encoder_target[3])
    return 0.8 * basic(own, other, batch, 0.3) + 0.2 * (first / 2 + second / 2)


def bridge(one: Objective, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> Tensor:
    weights = {name.removeprefix("terms.1.bridges.3."): tensor for name, tensor in one.named_parameters()}
    sides = [other.encoder_source[3], other.encoder_target[3]]
    if "mix.weight" in weights:
        mixed = torch.cat(sides, 2) @ weights["mix.weight"].T + weights["mix.bias"]
        sides = [torch.cat([side, mixed], 2) for side in sides]
    sides = [side @ weights["output.weight"].T + weights["output.bias"] for side in sides]
    return bihint(
        one, own, replace(other, encoder_source=[None] * 3 + sides[:1], encoder_target=[None] * 3 + sides[1:]), batch
    )


def ail(one: Objective, own: FlowPyramid, other: FlowPyramid, batch: FlowBatch) -> Tensor:
    errors = [reduced(teacher, each.flow) for _, teacher, each in map(case, range(3))]
    imitability = 1 - reduced(other, batch.flow) / (max(errors) - min(errors))
    return 0.3 * reduced(own, batch.flow) + 0.7 * imitability * reduced(own, other.flows[0])


EXPECTED: dict[str, Callable[[Objective, FlowPyramid, FlowPyramid, FlowBatch], Tensor]] = {
    "scratch": scratch,
    "teacher": scratch,
    "learned_from_teacher": lambda one, *given: basic(*given, 0.7),
    "learned_from_student": lambda one, *given: basic(*given, 0.7),
    "basic": lambda one, *given: basic(*given, 0.3),
    "hint": hint,
    "bihint": bihint,
    "bihint_scratch": bihint,
    "bridge": bridge,
    "bridge_mix": bridge,
    "ail": ail,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_the_loss_of_its_report(path: Path) -> None:
    recipe, method = load_recipe(path, [], {}), path.stem.split("-")[2]
    one = build_losses(recipe.loss, STUDENT, TINY, recipe.objective)
    assert one.calibrated  # no weight is left to be set during the training
    one.prepare(lambda: ((teacher, batch) for _, teacher, batch in map(case, range(3))))
    stop, epochs = EarlyStop(recipe.early_stop), recipe.train.epochs
    for epoch in (0, 359, 361, 559):
        one.begin_epoch(epoch, epochs)
        one.teacher_share = stop.share(epoch, epochs)
        found = torch.stack(list(one(*case(0)).values())).sum()
        expected = scratch if method == "bihint_scratch" and epoch > 360 else EXPECTED[method]
        assert float(found) == pytest.approx(float(expected(one, *case(0))), rel=1e-5), epoch
