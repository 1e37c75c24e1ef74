# SPDX-License-Identifier: MIT
"""The interface of an export format."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from bpfn_cli.choices import Stored
from bpfn_cli.models.bipointflownet import BiPointFlowNet

TYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Flow (1, N, 3) metres from pc1 to pc2, (1, N, 3) metres each.
Runner = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        points: per cloud; None: any number. stored: type of the weights in the file; all computation is in float32.
        metadata: JSON-able, written where the format has a place for it.
    """

    points: int | None = None
    stored: Stored = "float32"
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Format(ABC):
    """An export format; it has no state."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    title: ClassVar[str]  # in tables
    any_points: ClassVar[bool] = True  # whether a file can accept any number of points

    @abstractmethod
    def write(self, model: BiPointFlowNet, request: Request) -> bytes:
        """The content of the file. Raises: UsageError: the format cannot hold this network, or an extra is missing."""

    @abstractmethod
    def read(self, content: bytes, name: str) -> Runner:
        """The network in a file. Args: name: of the file, for errors. Raises: CheckpointError: damaged."""


def stored_as(model: BiPointFlowNet, stored: Stored) -> BiPointFlowNet:
    """A copy with its weights in this type."""
    return copy.deepcopy(model).to(TYPES[stored]).eval()
