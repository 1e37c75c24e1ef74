# SPDX-License-Identifier: MIT
"""Rigid ICP: known motions, moving objects, and clouds without a motion to fit."""

import pytest
import torch
from torch import Tensor

from bpfn_cli.ops import rigid_icp

CLOUD = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(1))


def turned(angle: float) -> Tensor:
    """A rotation about the vertical axis y."""
    axis = torch.tensor([[0, 0, 1.0], [0, 0, 0], [-1, 0, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(angle * axis)


def test_rigid_icp_finds_each_motion_although_30_percent_of_the_points_move_otherwise() -> None:
    generator = torch.Generator().manual_seed(0)
    pc1 = 20 * torch.rand(2, 1000, 3, generator=generator) - 10
    rotation = torch.stack([turned(0.02), turned(-0.01)])
    translation = torch.tensor([[[0.1, 0, -0.3]], [[0, 0, -2.1]]], dtype=torch.float64)
    pc2 = pc1.double() @ rotation.mT + translation
    pc2[:, :300, 0] += 3
    order = torch.randperm(1000, generator=generator)
    found, shift = rigid_icp(pc1, pc2[:, order].float())
    assert torch.allclose(found, rotation, rtol=0, atol=1e-3)
    assert torch.allclose(shift, translation, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("pc1", "pc2"),
    [(CLOUD[:, :2], CLOUD), (CLOUD, CLOUD[:, :1]), (torch.ones(1, 9, 3), CLOUD), (CLOUD, torch.ones(1, 9, 3))],
    ids=["two points", "one target", "equal points", "equal targets"],
)
def test_rigid_icp_is_zero_where_no_motion_can_be_fitted(pc1: Tensor, pc2: Tensor) -> None:
    rotation, translation = rigid_icp(pc1, pc2)
    assert torch.equal(rotation[0], torch.eye(3, dtype=torch.float64))
    assert not translation.any()


@pytest.mark.parametrize(("scale", "shift"), [(1, 1e6), (1e20, 0), (1e30, 1e30)])
def test_rigid_icp_is_finite_for_distant_and_huge_clouds(scale: float, shift: float) -> None:
    rotation, translation = rigid_icp(scale * CLOUD, scale * CLOUD + shift)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(1, dtype=torch.float64))
    moved = scale * CLOUD.double() @ rotation.mT + translation
    # The center is found, and so is the rotation if the clouds start close to each other.
    assert torch.allclose(moved.mean(1), (scale * CLOUD.double() + shift).mean(1), rtol=0, atol=2 * scale)
