# SPDX-License-Identifier: MIT
"""Muon: steps along orthogonalized momentum for weight matrices, and Adam for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_SIDE = 16  # of a weight matrix; smaller ones, biases and normalizations take steps of Adam
MOMENTUM = 0.95
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
ROUNDS, QUINTIC = 5, (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration
LIKE_ADAM = 0.2  # root mean square of Adam's steps, in learning rates


class Muon(torch.optim.Optimizer):
    """A matrix moves by `lr * 0.2 * sqrt(longer side)` times its orthogonalized Nesterov momentum, so that steps are as
    long as Adam's and learning rates carry over. A convolution counts as the matrix of its outputs and inputs.

    Args: weight_decay: decoupled for matrices, added to the gradient elsewhere, as in Adam.
    Source: Jordan et al., "Muon", 2024; step length: Liu et al., "Muon is scalable for LLM training", 2025.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                take = _step_of_matrix if _is_matrix(parameter) else _step_of_adam
                take(parameter, parameter.grad, self.state[parameter], group["lr"], group["weight_decay"])


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.dim() > 1 and min(parameter.shape[:2]) >= SMALLEST_SIDE


def _step_of_matrix(weight: Tensor, gradient: Tensor, state: dict[str, Any], lr: float, weight_decay: float) -> None:
    momentum = state.setdefault("momentum", torch.zeros_like(weight)).lerp_(gradient, 1 - MOMENTUM)
    direction = orthogonalize(gradient.lerp(momentum, MOMENTUM).flatten(1))
    length = LIKE_ADAM * max(direction.shape) ** 0.5
    weight.mul_(1 - lr * weight_decay).add_(direction.view_as(weight), alpha=-lr * length)


def _step_of_adam(weight: Tensor, gradient: Tensor, state: dict[str, Any], lr: float, weight_decay: float) -> None:
    gradient = gradient.add(weight, alpha=weight_decay)
    if not state:
        state |= {"step": torch.zeros(()), "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
    state["step"] += 1
    mean = state["mean"].lerp_(gradient, 1 - BETAS[0]) / (1 - BETAS[0] ** state["step"].item())
    square = state["square"].lerp_(gradient.square(), 1 - BETAS[1]) / (1 - BETAS[1] ** state["step"].item())
    weight.addcdiv_(mean, square.sqrt() + EPSILON, value=-lr)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Replace the singular values of (M, N) by values of about 1 (0.7 to 1.2), those near 0 excepted.

    The Newton-Schulz iteration X <- (a + b G + c G^2) X with G = X X^T is computed on G, which is small, and applied to
    X once.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram, identity = wide @ wide.T, torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    whole, (a, b, c) = identity, QUINTIC
    for _ in range(ROUNDS):
        factor = a * identity + b * gram + c * gram @ gram
        whole, gram = factor @ whole, factor @ gram @ factor
    found = whole @ wide
    return found if matrix.shape[0] <= matrix.shape[1] else found.T
