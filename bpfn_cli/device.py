# SPDX-License-Identifier: MIT
"""The device that computes, and how this process keeps its memory."""

from __future__ import annotations

import ctypes
import sys

import torch

from bpfn_cli.errors import UsageError, printable

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto` is CUDA where there is one.

    Args: local_rank: number of this process among those of its machine, each of which takes a GPU of its own.
    Raises: UsageError: asked for a device that is not there.
    """
    if local_rank is not None and resolve_device(name) == torch.device("cuda"):
        # Where each process is shown one GPU alone, it is the first.
        name = f"cuda:{local_rank if torch.cuda.device_count() > 1 else 0}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {printable(name)}: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {printable(name)}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto")
    return device


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of freed tensors, where it runs on glibc; True where it does.

    By default glibc hands each large tensor back to the system, and the next one costs its page faults again:
    10 to 20 % of a training step on a CPU. The price is that memory once used stays with the process to its end.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    largest = 2**31 - 1  # bytes; the parameters are C integers
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, largest))
