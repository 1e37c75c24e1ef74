# SPDX-License-Identifier: MIT
"""The device to compute on, and how this process manages freed memory."""

import ctypes
import sys

import torch

from bpfn_cli.errors import UsageError, printable

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """Find the device called `name`; `auto` is CUDA if available.

    Args: local_rank: number of this process among those of its machine; each uses its own GPU.
    Raises: UsageError: the device does not exist.
    """
    if local_rank is not None and resolve_device(name) == torch.device("cuda"):
        # If each process sees only one GPU, it is number 0.
        name = f"cuda:{local_rank if torch.cuda.device_count() > 1 else 0}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {printable(name)}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    return device


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of freed tensors, on glibc; return whether it does.

    By default glibc returns each large tensor to the system, and the next one pays for its page faults again:
    10 to 20 % of a training step on a CPU. In exchange, the process never gives back memory it has used.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    largest = 2**31 - 1  # bytes; the parameters are C integers
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, largest))
