# SPDX-License-Identifier: MIT
"""Batch norm over the whole batch, also where several processes share it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bpfn_cli import distributed


class _OverProcesses(nn.modules.batchnorm._BatchNorm):
    """In training the statistics are those of the samples of all processes; alone it is torch's own module.

    torch's `SyncBatchNorm` does the same on GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(x)
        return self._over_processes(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        counts = 0.0 if distributed.share() == 0 else 1.0  # of a process that computes another's samples for nothing
        rows = counts * x.numel() / x.shape[1]
        sums = distributed.differentiable_sum(torch.cat([counts * x.sum(axes), x.new_tensor([rows])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        apart = x - mean.view(shape)
        variance = distributed.differentiable_sum(counts * apart.square().sum(axes)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            momentum = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        y = apart * torch.rsqrt(variance + self.eps).view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y


class BatchNorm1d(_OverProcesses, nn.BatchNorm1d):
    """Of (R, C) or (B, C, N)."""


class BatchNorm2d(_OverProcesses, nn.BatchNorm2d):
    """Of (B, C, H, W)."""
