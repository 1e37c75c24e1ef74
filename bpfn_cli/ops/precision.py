# SPDX-License-Identifier: MIT
"""The precision of the large matrix products: float32, or bfloat16 or float16 on request.

Only the products over neighbors are reduced; they take most of the time. Coordinates, offsets, neighbor search, sums
and all stored tensors keep their type: positions in bfloat16 would be off by decimetres.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from bpfn_cli.precision import Precision

_REDUCED = {Precision.bf16: torch.bfloat16, Precision.float16: torch.float16}
_precision: ContextVar[Precision] = ContextVar("bpfn_precision", default=Precision.float32)


@contextmanager
def matrix_precision(precision: Precision) -> Iterator[None]:
    """Set the precision of the products over neighbors inside a `with` block."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def current_precision() -> Precision:
    """The precision that `matrix_precision` set; float32 in a network compiled by `torch.compile`."""
    return Precision.float32 if torch.compiler.is_compiling() else _precision.get()


def in_matrix_precision(weight: Tensor) -> Tensor:
    """Convert `weight` to the current precision; a product over neighbors is computed in its weight's type."""
    reduced = _REDUCED.get(current_precision())
    return weight if reduced is None else weight.to(reduced)
