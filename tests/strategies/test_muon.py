# SPDX-License-Identifier: MIT
"""Muon: its steps by hand, and a training with it that is resumed bit for bit."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bpfn_cli.strategies.muon import LIKE_ADAM, Muon, orthogonalize


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_orthogonalize_keeps_the_singular_vectors_and_evens_the_values() -> None:
    for shape in ((16, 64), (64, 16), (32, 32)):
        given = matrix(*shape)
        found = orthogonalize(given)
        values = torch.linalg.svdvals(found)
        assert 0.5 < values.min() <= values.max() < 1.25
        u, _, vt = torch.linalg.svd(given, full_matrices=False)
        rotated = u.T @ found @ vt.T  # diagonal if the vectors are kept
        assert (rotated - rotated.diag().diag()).abs().max() < 1e-4


def test_matrix_moves_as_far_as_with_adam_and_ignores_the_scale_of_the_gradient() -> None:
    moved = []
    for scale in (1e-3, 1.0):
        weight = nn.Parameter(torch.zeros(32, 64, 1))
        weight.grad = scale * matrix(32, 64)[..., None]
        Muon([weight], lr=0.01).step()
        moved.append(weight.detach())
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-6)
    root_mean_square = float(moved[0].square().mean().sqrt())
    assert 0.8 < root_mean_square / (0.01 * LIKE_ADAM) < 1.2
    assert float((moved[0] * matrix(32, 64)[..., None]).sum()) < 0  # downhill


def test_vectors_and_small_matrices_take_the_steps_of_adam() -> None:
    for shape in ((40,), (8, 3, 1), (64, 1, 16)):
        start = matrix(int(torch.tensor(shape).prod()), 1).view(shape)
        results = []
        for kind in (Muon, torch.optim.Adam):
            weight = nn.Parameter(start.clone())
            optimizer = kind([weight], lr=1e-2, weight_decay=0.1)
            for step in range(5):
                weight.grad = (start * (step + 1)).cos()
                optimizer.step()
            results.append(weight.detach())
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_weights_of_a_matrix_decay_by_the_learning_rate() -> None:
    weight = nn.Parameter(matrix(16, 16))
    weight.grad = torch.zeros(16, 16)
    before = weight.detach().clone()
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(weight.detach(), 0.95 * before)


def test_state_that_is_loaded_continues_alike() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(matrix(16, 20)), nn.Parameter(matrix(4, 4))]
    optimizer = Muon(weights, lr=1e-2)

    def step(chosen: list[nn.Parameter], taken: Muon, seed: int) -> None:
        for index, weight in enumerate(chosen):
            weight.grad = matrix(*weight.shape, seed=seed + index)
        taken.step()

    step(weights, optimizer, 1)
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    resumed = Muon(copies, lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(weights, optimizer, 7)
    step(copies, resumed, 7)
    assert all(torch.equal(weight, copy) for weight, copy in zip(weights, copies, strict=True))
