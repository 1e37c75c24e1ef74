# SPDX-License-Identifier: MIT
"""Weights in fewer bits on disk. Reading gives float32 again, so every command reads such files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bpfn_cli.choices import Storage
from bpfn_cli.errors import CheckpointError, UsageError, printable

SCALE = ":scale"  # suffix of the name of the scales of an int8 weight
LARGEST_INT8 = 127
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def encode(state: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """Tensors as they are written.

    float16, bfloat16: all floating-point tensors. int8: matrices, as whole numbers times a scale for each row (output
    channel) that makes its largest value 127; vectors stay float32.
    Raises: UsageError: a value is too large for float16.
    """
    if storage == "float32":
        return dict(state)
    if storage != "int8":
        dtype = DTYPES[storage]
        encoded = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        for name, tensor in encoded.items():
            if tensor.is_floating_point() and not torch.equal(tensor.isfinite(), state[name].isfinite()):
                raise UsageError(f"{storage}: {printable(name)} has values above 65504; use bfloat16 or int8")
        return encoded
    encoded = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.dim() < 2:
            encoded[name] = tensor
            continue
        rows = tensor.float().flatten(1)
        largest = rows.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        scales = largest / LARGEST_INT8
        encoded[name] = (rows / scales[:, None]).round().to(torch.int8).view(tensor.shape)
        encoded[f"{name}{SCALE}"] = scales
    return encoded


def decode(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of a file with int8 weights in float32; others as they are. name: of the file, for errors.

    Raises: CheckpointError: scales and weights do not belong together.
    """
    scales = {key.removesuffix(SCALE): value for key, value in state.items() if key.endswith(SCALE)}
    decoded = {}
    for key, tensor in state.items():
        if key.endswith(SCALE):
            continue
        if tensor.dtype == torch.int8:
            scale = scales.pop(key, None)
            if scale is None or not scale.is_floating_point() or tensor.dim() < 2 or scale.shape != tensor.shape[:1]:
                raise CheckpointError(f"{name}: {printable(key)} is int8 without a scale for each row; write it again")
            decoded[key] = tensor.float() * scale.float().view(-1, *[1] * (tensor.dim() - 1))
        else:
            decoded[key] = tensor
    if scales:
        raise CheckpointError(f"{name}: {printable(next(iter(scales)))} has scales but is not int8; write it again")
    return decoded
