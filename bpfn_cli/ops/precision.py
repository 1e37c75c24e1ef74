# SPDX-License-Identifier: MIT
"""The precision of the large matrix products: float32, or bfloat16 or float16 where a user asks for it.

Reduced are the products over neighbors, which take most of the time. Coordinates, offsets, neighbor search, sums and
everything kept stay as they are: positions in bfloat16 would be off by decimetres.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from bpfn_cli.errors import UsageError
from bpfn_cli.ops.backend import is_plain
from bpfn_cli.precision import Precision

_REDUCED = {Precision.bf16: torch.bfloat16, Precision.float16: torch.float16}
_reduced: ContextVar[torch.dtype | None] = ContextVar("bpfn_reduced", default=None)


@contextmanager
def matrix_precision(precision: Precision) -> Iterator[None]:
    """Choose the precision of the products over neighbors inside a `with` block.

    Raises: UsageError: less than float32 on the plain path, which has none.
    """
    reduced = _REDUCED.get(precision)
    if reduced is not None and is_plain():
        name = precision.value
        raise UsageError(
            f"precision {name}: the plain path is float32 throughout; unset BPFN_PLAIN or leave {name} out"
        )
    token = _reduced.set(reduced)
    try:
        yield
    finally:
        _reduced.reset(token)


def in_matrix_precision(weight: Tensor) -> Tensor:
    """`weight` as a product over neighbors is to take it; the product follows its type. Compiled, it is float32."""
    if torch.compiler.is_compiling():
        return weight
    reduced = _reduced.get()
    return weight if reduced is None else weight.to(reduced)
