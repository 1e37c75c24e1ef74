# SPDX-License-Identifier: MIT
"""What losses found out about a teacher before the first step, kept for later runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

import bpfn_cli
from bpfn_cli.errors import DiskError
from bpfn_cli.files import make_folder, write_atomic

FOLDER = ".prepared"


class Prepared:
    """A file below the runs that holds the tensors a loss's `prepare` has changed.

    Args: decisive: all that they depend on, as plain values.
    """

    def __init__(self, runs: Path, decisive: Mapping[str, Any]):
        text = json.dumps({**decisive, "bpfn": bpfn_cli.__version__}, sort_keys=True, default=str)
        self.path = runs / FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"

    def restore(self, term: nn.Module) -> bool:
        """Give the loss its tensors; False where there are none, or not such."""
        try:
            kept = safetensors.torch.load(self.path.read_bytes())
            state = term.state_dict()
            if not kept or any(state[name].shape != tensor.shape for name, tensor in kept.items()):
                return False
        except (OSError, KeyError, safetensors.SafetensorError):
            return False
        term.load_state_dict({**state, **kept})
        return True

    def keep(self, term: nn.Module, before: Mapping[str, Tensor]) -> None:
        """Write what differs from the state before. A full disk is no reason to stop: it will be found out again."""
        after = {name: tensor for name, tensor in term.state_dict().items() if name in before}
        changed = {name: tensor.cpu().contiguous() for name, tensor in after.items() if not tensor.equal(before[name])}
        if changed:
            with contextlib.suppress(DiskError):
                make_folder(self.path.parent)
                write_atomic(self.path, safetensors.torch.save(changed))
