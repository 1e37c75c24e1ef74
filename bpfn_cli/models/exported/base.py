# SPDX-License-Identifier: MIT
"""The interface of an export format."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.choices import Calibration, Storage
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.fake_quantization import Ranges
from bpfn_cli.models.reference import ReferenceNetwork

TYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Two clouds (N, 3), float32 metres in the internal frame.
Clouds = tuple[np.ndarray, np.ndarray]
# Flow (1, N, 3) metres from pc1 to pc2, (1, N, 3) metres each.
Runner = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        points: per cloud; None: any number. stored: type of the weights in the file; all computation is in float32,
            but with int8 where the format can.
        ranges: of the inputs of the layers, for computation in int8; None: measured on `scenes` by `calibration`.
        metadata: JSON-able, written where the format has a place for it.
    """

    points: int | None = None
    stored: Storage = "float32"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    ranges: Ranges | None = None
    scenes: Sequence[Clouds] = ()
    calibration: Calibration = "percentile"


class Format(ABC):
    """An export format; it has no state."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    title: ClassVar[str]  # in tables
    any_points: ClassVar[bool] = True  # whether a file can accept any number of points
    stores: ClassVar[tuple[Storage, ...]] = ("float32", "float16", "bfloat16")
    computes_int8: ClassVar[bool] = False  # whether it computes with int8 weights as they are, which needs ranges

    def can_hold(self, model: BiPointFlowNet) -> bool:
        """Whether it has a place for all sizes of a network."""
        return True

    @abstractmethod
    def write(self, model: BiPointFlowNet, request: Request) -> bytes:
        """The content of the file. Raises: UsageError: the format cannot hold this network, or an extra is missing."""

    @abstractmethod
    def read(self, content: bytes, name: str) -> Runner:
        """The network in a file. Args: name: of the file, for errors. Raises: CheckpointError: damaged."""


def stored_as(model: BiPointFlowNet, stored: Storage) -> BiPointFlowNet:
    """A copy with its weights in this type."""
    return fast_copy(model).to(TYPES[stored])


def fast_copy(model: BiPointFlowNet) -> BiPointFlowNet:
    """A copy in evaluation mode. Of the plain network, which cannot be exported, the usual one of these weights."""
    if not isinstance(model, ReferenceNetwork):
        return copy.deepcopy(model).eval()
    made = BiPointFlowNet(model.variant, model.num_points)
    made.load_state_dict(model.state_dict())
    return made.eval()
