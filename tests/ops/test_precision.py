# SPDX-License-Identifier: MIT
"""bfloat16 products where they are asked for, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import LEAST, tiny_network

from bpfn_cli.config import Tree, build
from bpfn_cli.errors import UsageError
from bpfn_cli.losses import build_losses
from bpfn_cli.models.predict import predict_flow
from bpfn_cli.ops import matrix_precision
from bpfn_cli.ops.precision import in_matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.strategies import PlainStrategy, Teacher
from bpfn_cli.structures import FlowBatch


def clouds() -> tuple[torch.Tensor, torch.Tensor]:
    pc1 = 20 * torch.rand(1, LEAST, 3, generator=torch.Generator().manual_seed(0))
    return pc1, pc1.flip(1) + 0.2


def flow_in(precision: Precision) -> torch.Tensor:
    with torch.no_grad(), matrix_precision(precision):
        return tiny_network()(*clouds()).flows[0]


def test_weights_are_reduced_inside_the_block_alone() -> None:
    weight = torch.ones(2, 2)
    with matrix_precision(Precision.bf16):
        assert in_matrix_precision(weight).dtype == torch.bfloat16
        with matrix_precision(Precision.float32):
            assert in_matrix_precision(weight) is weight
    assert in_matrix_precision(weight) is weight


REDUCED = (Precision.bf16, Precision.float16)


@pytest.mark.parametrize("precision", REDUCED)
def test_flow_in_less_is_float32_near_the_exact_one_but_not_it(precision: Precision) -> None:
    exact, reduced = flow_in(Precision.float32), flow_in(precision)
    assert reduced.dtype == torch.float32
    difference = float((exact - reduced).norm() / exact.norm())
    assert 1e-6 < difference < 0.05


@pytest.mark.parametrize("precision", REDUCED)
def test_gradients_in_less_are_float32_near_the_exact_ones(precision: Precision) -> None:
    def gradients(precision: Precision) -> torch.Tensor:
        model = tiny_network()
        with matrix_precision(precision):
            output = model(*clouds())
        output.flows[0].square().sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, reduced = gradients(Precision.float32), gradients(precision)
    assert reduced.dtype == torch.float32
    assert 1e-6 < float((exact - reduced).norm() / exact.norm()) < 0.05


def test_prediction_takes_the_precision_it_is_told() -> None:
    pc1, pc2 = (cloud[0].numpy() for cloud in clouds())
    flows = [
        predict_flow(tiny_network(), pc1, pc2, points=LEAST, precision=precision)
        for precision in (Precision.float32, Precision.bf16, Precision.bf16)
    ]
    assert not np.array_equal(flows[0], flows[1])
    assert np.array_equal(flows[1], flows[2])


@pytest.mark.parametrize("name", ["32", 32, "float32", "bf16", "16", 16, "float16"])
def test_precisions_by_their_names_in_recipes(name: Any) -> None:
    recipe = build(Recipe, Tree({"train": {"precision": name}}, {}, "x"))
    assert recipe.train.precision.value == str(name).removeprefix("float")


def test_other_precisions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.precision: .*got 64"):
        build(Recipe, Tree({"train": {"precision": 64}}, {}, "x"))


@pytest.mark.parametrize("which", ["precision", "teacher_precision"])
def test_training_reduces_student_or_teacher_as_told(which: str) -> None:
    def loss_after_a_step(**precisions: Precision) -> float:
        student, teacher = tiny_network(1), tiny_network(2)
        objective = build_losses(["basic"], student.variant, teacher.variant)
        guide = Teacher(teacher, precisions.pop("teacher_precision", Precision.float32))
        strategy = PlainStrategy(student, guide, objective, weight_decay=0, clip_norm=None, **precisions)
        batch = FlowBatch(*clouds(), torch.zeros(1, LEAST, 3), names=("a",))
        return sum(term.weighted for term in strategy.step(batch, 1e-3).values())

    exact, reduced = loss_after_a_step(), loss_after_a_step(**{which: Precision.bf16})
    assert reduced != exact
    assert reduced == pytest.approx(exact, rel=0.01)
