# SPDX-License-Identifier: MIT
"""Whether an operation runs as a Triton kernel."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def runs_triton(*tensors: Tensor) -> bool:
    """True for float32 tensors on a CUDA device that Triton supports."""
    device = tensors[0].device
    return device.type == "cuda" and all(x.dtype == torch.float32 for x in tensors) and _has_triton(device)


@cache
def _has_triton(device: torch.device) -> bool:
    """Triton comes with torch for CUDA on Linux, and supports compute capability 8.0 and newer."""
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (8, 0)
