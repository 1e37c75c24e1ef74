# SPDX-License-Identifier: MIT
"""Loops in C for a CPU: the same results as torch, NumPy and pykdtree, which compute where they are absent.

They are compiled when the package is installed, if a C compiler with OpenMP is at hand. `BPFN_NATIVE=0` leaves them
out. The interface is plain C, called through ctypes: no headers of Python or torch are needed, and no other version
of either breaks it. OpenMP is the library torch has loaded, so its number of threads counts here too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from bpfn_cli.errors import ShapeError

MOST_NEIGHBORS = 256  # also of the middle channels
MOST_POINTS = 2**31 - 1

_count, _tensor, _number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
_GEOMETRY = {
    "bpfn_sample": [_tensor, *[_count] * 3, _tensor],
    "bpfn_neighbors": [*[_tensor] * 2, *[_count] * 4, _tensor],
}
_NEIGHBORHOOD = {
    "bpfn_activate": [*[_tensor] * 3, *[_count] * 3, _number, _tensor],
    "bpfn_largest": [_tensor, *[_count] * 3, *[_tensor] * 2],
    "bpfn_propagate_backward": [*[_tensor] * 6, *[_count] * 4, _number, *[_tensor] * 3],
    "bpfn_mix": [*[_tensor] * 4, *[_count] * 4, _tensor],
    "bpfn_mix_backward": [*[_tensor] * 5, *[_count] * 4, *[_tensor] * 3],
}
_LIBRARIES = {
    "_geometry": _GEOMETRY,
    "_neighborhood_float": _NEIGHBORHOOD,
    "_neighborhood_double": _NEIGHBORHOOD,
}
_OF_TYPE = {torch.float32: "_neighborhood_float", torch.float64: "_neighborhood_double"}


def runs_native(*tensors: Tensor) -> bool:
    """True when the C loops are to compute on these tensors: they were built, and all are of one type, on the CPU."""
    first = tensors[0].dtype
    alike = first in _OF_TYPE and all(x.dtype == first and x.device.type == "cpu" for x in tensors)
    return alike and has_native()


def has_native() -> bool:
    """True when the C loops were built from these sources, and `BPFN_NATIVE=0` does not leave them out."""
    return os.environ.get("BPFN_NATIVE", "") != "0" and all(_load(name) is not None for name in _LIBRARIES)


def describe() -> str:
    """For people: whether the C loops are there, and what to do if not."""
    if os.environ.get("BPFN_NATIVE", "") == "0":
        return "left out by BPFN_NATIVE=0"
    if has_native():
        return "built"
    if all(find_spec(f"{__name__}.{name}") for name in _LIBRARIES):
        return "built from other sources, or for another machine, and not used: install bpfn again"
    return "not built, half as fast: install a C compiler with OpenMP (gcc), then bpfn again"


@cache
def fingerprint() -> int:
    """Of the C sources beside this file, as in setup.py."""
    content = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.[ch]")))
    return int(hashlib.sha256(content).hexdigest()[:15], 16)


@cache
def _load(name: str) -> ctypes.CDLL | None:
    spec = find_spec(f"{__name__}.{name}")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        library.bpfn_sources.restype = _count
        if library.bpfn_sources() != fingerprint():
            return None
        for function, arguments in _LIBRARIES[name].items():
            getattr(library, function).argtypes = arguments
    except (OSError, AttributeError):  # of another machine, or of other sources
        return None
    return library


def _call(library: str, function: str, *arguments: Tensor | float | None) -> None:
    """Call a C function with the addresses of contiguous tensors; None is the null pointer."""
    loaded = _load(library)
    assert loaded is not None, "ask has_native() first"
    if getattr(loaded, function)(*[x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]):
        raise MemoryError(f"{function}: out of memory")


def sample(points: Tensor, count: int) -> Tensor:
    """`farthest_point_sample` of (B, N, 3) float32."""
    chosen = torch.empty(len(points), count, dtype=torch.int64)
    _call("_geometry", "bpfn_sample", points.contiguous(), *points.shape[:2], count, chosen)
    return chosen


def neighbors(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`knn` of float32; at a tie the lowest index comes first. k <= MOST_NEIGHBORS, at most MOST_POINTS points."""
    found = torch.empty(*queries.shape[:2], k, dtype=torch.int64)
    looks = [(cloud.data_ptr(), cloud.shape, cloud.stride()) for cloud in (queries, points)]
    is_same = looks[0] == looks[1]
    points = points.contiguous()
    queries = points if is_same else queries.contiguous()  # then one tree serves both
    _call("_geometry", "bpfn_neighbors", queries, points, *queries.shape[:2], points.shape[1], k, found)
    return found


def checked_rows(rows: Tensor, queried: int, number: int) -> Tensor:
    """Row numbers (queried, k) as C takes them; others it would follow into foreign memory.

    Raises: ShapeError: of another shape, or outside 0 .. number - 1.
    """
    if rows.dim() != 2 or len(rows) != queried:
        raise ShapeError(f"neighbors: {tuple(rows.shape)} found, ({queried}, k) expected")
    if rows.numel():
        least, most = (int(bound) for bound in rows.aminmax())
        if least < 0 or most >= number:
            raise ShapeError(f"neighbors: row numbers reach from {least} to {most}, but there are {number} rows")
    return rows.to(torch.int64).contiguous()


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raises: ShapeError."""
    if tensor.shape != expected:
        raise ShapeError(f"{name}: {tuple(tensor.shape)} found, {expected} expected")


def activate(own: Tensor, other: Tensor, rows: Tensor, slope: float, result: Tensor) -> None:
    """LeakyReLU(own (R, C) + other (S, C) [rows (R, k)]) into `result` (R, k, C). All contiguous, rows checked."""
    _call(_OF_TYPE[own.dtype], "bpfn_activate", own, other, rows, *rows.shape, own.shape[1], slope, result)


def largest(values: Tensor, result: Tensor, argmax: Tensor | None) -> None:
    """The maximum over dimension 1 of `values` (R, k, D) into `result` (R, D), where it was into `argmax` (R, D) uint8.

    All contiguous; k <= MOST_NEIGHBORS.
    """
    _call(_OF_TYPE[values.dtype], "bpfn_largest", values, *values.shape, result, argmax)


def propagate_backward(
    gradient: Tensor, own: Tensor, other: Tensor, rows: Tensor, weight: Tensor, argmax: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `own`, `other` and `weight` of `propagate_max`.

    Raises: ShapeError: the shapes do not fit together.
    """
    rows = checked_rows(rows, len(own), len(other))
    outputs, channels = weight.shape
    check_shape("own", own, (len(rows), channels))
    check_shape("other", other, (len(other), channels))
    check_shape("gradient", gradient, (len(rows), outputs))
    check_shape("argmax", argmax, (len(rows), outputs))
    gradient, own, other, weight, argmax = (x.contiguous() for x in (gradient, own, other, weight, argmax))
    results = torch.empty_like(own), torch.zeros_like(other), torch.empty_like(weight)
    sizes = *rows.shape, own.shape[1], len(weight)
    inputs = gradient, own, other, rows, weight, argmax
    _call(_OF_TYPE[own.dtype], "bpfn_propagate_backward", *inputs, *sizes, slope, *results)
    return results


def mix(offsets: Tensor, features: Tensor, weights: Tensor, rows: Tensor, result: Tensor) -> None:
    """sum_j weights[i, j, m] [offsets[i, j], features[rows[i, j]]] into `result` (R, m, 3 + C).

    All contiguous, rows checked.
    """
    sizes = *rows.shape, features.shape[1], weights.shape[2]
    _call(_OF_TYPE[features.dtype], "bpfn_mix", offsets, features, weights, rows, *sizes, result)


def mix_backward(
    gradient: Tensor, offsets: Tensor, features: Tensor, weights: Tensor, rows: Tensor, results: tuple[Tensor, ...]
) -> None:
    """Gradients of offsets and weights into the first and third of `results`; that of features is added to the second.

    All contiguous, rows checked.
    """
    sizes = *rows.shape, features.shape[1], weights.shape[2]
    _call(_OF_TYPE[features.dtype], "bpfn_mix_backward", gradient, offsets, features, weights, rows, *sizes, *results)
