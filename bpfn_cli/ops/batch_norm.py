# SPDX-License-Identifier: MIT
"""Batch norm over the whole batch, also when several processes share it."""

import torch
from torch import Tensor, nn

from bpfn_cli import distributed


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's batch norm whose training statistics cover the samples of all processes.

    torch's own `SyncBatchNorm` does this on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(x)
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        counts = 0.0 if distributed.share() == 0 else 1.0  # 0: this process repeats a sample only to keep in step
        rows = counts * x.numel() / x.shape[1]
        sums = distributed.differentiable_sum(torch.cat([counts * x.sum(axes), x.new_tensor([rows])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = x - mean.view(shape)
        variance = distributed.differentiable_sum(counts * centered.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        y = centered * torch.rsqrt(variance + self.eps).view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
        self.running_var.lerp_(variance, momentum)  # type: ignore[union-attr]
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class BatchNorm1d(_SharedBatchNorm, nn.BatchNorm1d):
    """Batch norm of (R, C) or (B, C, N)."""


class BatchNorm2d(_SharedBatchNorm, nn.BatchNorm2d):
    """Batch norm of (B, C, H, W)."""
