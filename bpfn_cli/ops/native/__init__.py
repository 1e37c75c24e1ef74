# SPDX-License-Identifier: MIT
"""C loops for a CPU. They compute what torch, NumPy and pykdtree compute where the loops are missing.

They are compiled on installation if a C compiler with OpenMP is available; `BPFN_NATIVE=0` disables them. The
interface is plain C through ctypes, so they need no headers of Python or torch and work with any version of either.
OpenMP is the library that torch has loaded, so torch's number of threads applies.
"""

import ctypes
import hashlib
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from bpfn_cli.errors import ShapeError

MOST_NEIGHBORS = 256  # applies to the middle channels too
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
    "bpfn_fuses": [],
    "bpfn_pack": [_tensor, *[_count] * 6, _tensor],
    "bpfn_propagate": [*[_tensor] * 4, *[_count] * 4, _number, *[_tensor] * 2],
    "bpfn_convolve": [*[_tensor] * 5, *[_count] * 5, _tensor],
    "bpfn_mix": [*[_tensor] * 4, *[_count] * 4, _tensor],
    "bpfn_mix_backward": [*[_tensor] * 5, *[_count] * 4, *[_tensor] * 3],
}
_LIBRARIES = {"_geometry": _GEOMETRY, "_neighborhood_float": _NEIGHBORHOOD, "_neighborhood_double": _NEIGHBORHOOD}
_BY_TYPE = {torch.float32: "_neighborhood_float", torch.float64: "_neighborhood_double"}


def runs_native(*tensors: Tensor) -> bool:
    """True if the C loops run on these tensors: they were built, and all tensors have one type and are on the CPU."""
    first = tensors[0].dtype
    return first in _BY_TYPE and all(x.dtype == first and x.device.type == "cpu" for x in tensors) and has_native()


def has_native() -> bool:
    """True if the C loops were built from these sources and `BPFN_NATIVE=0` does not disable them."""
    return os.environ.get("BPFN_NATIVE", "") != "0" and all(_load(name) is not None for name in _LIBRARIES)


def describe() -> str:
    """Say whether the C loops are available, and what to do if not."""
    if os.environ.get("BPFN_NATIVE", "") == "0":
        return "disabled by BPFN_NATIVE=0"
    if has_native():
        return "built"
    if all(find_spec(f"{__name__}.{name}") for name in _LIBRARIES):
        return "not used: built from other sources or for another machine; install bpfn again"
    return (
        "not built, so inference takes 1.5 to 2 times as long; install a C compiler with OpenMP (gcc), then bpfn again"
    )


@cache
def fingerprint() -> int:
    """Hash of the C sources next to this file, computed as in setup.py."""
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
    except (OSError, AttributeError):  # built for another machine, or from other sources
        return None
    return library


def _call(library: str, function: str, *arguments: Tensor | float | None) -> None:
    """Call a C function with the addresses of contiguous tensors; None is the null pointer."""
    loaded = _load(library)
    assert loaded is not None, "check has_native() first"
    if getattr(loaded, function)(*[x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]):
        raise MemoryError(f"{function}: out of memory")


@cache
def _panel_width(kind: torch.dtype) -> int:
    """Columns that the fused loops process together; 0: this processor does not run them well."""
    library = _load(_BY_TYPE[kind])
    if library is None:
        return 0
    library.bpfn_fuses.restype = _count
    return int(library.bpfn_fuses())


def fuses(*tensors: Tensor) -> bool:
    """True if loops that include the matrix product run on these tensors, and fast; `BPFN_FUSED=0` disables them."""
    wanted = os.environ.get("BPFN_FUSED", "") != "0"
    return wanted and runs_native(*tensors) and _panel_width(tensors[0].dtype) > 0


def _panels(matrix: Tensor) -> Tensor:
    """Split a matrix (m, C, D) into panels of columns (panels, m, C, width), the last filled up with zeros."""
    width = _panel_width(matrix.dtype)
    panels = matrix.new_empty(-(-matrix.shape[2] // width), *matrix.shape[:2], width)
    _call(_BY_TYPE[matrix.dtype], "bpfn_pack", matrix, *matrix.shape, *matrix.stride(), panels)
    return panels


def sample(points: Tensor, count: int) -> Tensor:
    """`farthest_point_sample` of (B, N, 3) float32."""
    chosen = torch.empty(len(points), count, dtype=torch.int64)
    _call("_geometry", "bpfn_sample", points.contiguous(), *points.shape[:2], count, chosen)
    return chosen


def neighbors(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """`knn` of float32; at a tie the lowest index comes first. k <= MOST_NEIGHBORS, at most MOST_POINTS points."""
    found = torch.empty(*queries.shape[:2], k, dtype=torch.int64)
    views = [(cloud.data_ptr(), cloud.shape, cloud.stride()) for cloud in (queries, points)]
    points = points.contiguous()
    queries = points if views[0] == views[1] else queries.contiguous()  # one tree then serves both
    _call("_geometry", "bpfn_neighbors", queries, points, *queries.shape[:2], points.shape[1], k, found)
    return found


def checked_rows(rows: Tensor, queried: int, number: int) -> Tensor:
    """Row numbers (queried, k) as int64; C would follow invalid ones into foreign memory.

    Raises: ShapeError: another shape, or a row outside 0 .. number - 1.
    """
    if rows.dim() != 2 or len(rows) != queried:
        raise ShapeError(f"neighbors: found {tuple(rows.shape)}, expected ({queried}, k)")
    if rows.numel():
        least, most = (int(bound) for bound in rows.aminmax())
        if least < 0 or most >= number:
            raise ShapeError(f"neighbors: found row numbers from {least} to {most}, but there are {number} rows")
    return rows.to(torch.int64).contiguous()


def check_shapes(**tensors: tuple[Tensor, tuple[int, ...]]) -> None:
    """Check the shape of each named tensor. Raises: ShapeError."""
    for name, (tensor, expected) in tensors.items():
        if tensor.shape != expected:
            raise ShapeError(f"{name}: found {tuple(tensor.shape)}, expected {expected}")


def activate(own: Tensor, other: Tensor, rows: Tensor, slope: float, result: Tensor) -> None:
    """LeakyReLU(own (R, C) + other (S, C) [rows (R, k)]) into `result` (R, k, C). All contiguous, rows checked."""
    _call(_BY_TYPE[own.dtype], "bpfn_activate", own, other, rows, *rows.shape, own.shape[1], slope, result)


def largest(values: Tensor, result: Tensor, argmax: Tensor | None) -> None:
    """Maximum over dimension 1 of `values` (R, k, D) into `result` (R, D), its position into `argmax` (R, D) uint8.

    All contiguous; k <= MOST_NEIGHBORS.
    """
    _call(_BY_TYPE[values.dtype], "bpfn_largest", values, *values.shape, result, argmax)


def propagate_backward(
    gradient: Tensor, own: Tensor, other: Tensor, rows: Tensor, weight: Tensor, argmax: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `own`, `other` and `weight` in `propagate_max`.

    Raises: ShapeError: the shapes do not match.
    """
    rows = checked_rows(rows, len(own), len(other))
    outputs, channels = weight.shape
    check_shapes(
        own=(own, (len(rows), channels)),
        other=(other, (len(other), channels)),
        gradient=(gradient, (len(rows), outputs)),
        argmax=(argmax, (len(rows), outputs)),
    )
    gradient, own, other, weight, argmax = (x.contiguous() for x in (gradient, own, other, weight, argmax))
    results = torch.empty_like(own), torch.zeros_like(other), torch.empty_like(weight)
    inputs, sizes = (gradient, own, other, rows, weight, argmax), (*rows.shape, channels, outputs)
    _call(_BY_TYPE[own.dtype], "bpfn_propagate_backward", *inputs, *sizes, slope, *results)
    return results


def propagate(
    own: Tensor, other: Tensor, rows: Tensor, weight: Tensor, slope: float, result: Tensor, argmax: Tensor | None
) -> None:
    """max_j W LeakyReLU(own_i + other_j) into `result` (R, D), j into `argmax` (R, D) uint8. If `fuses`.

    All contiguous, rows checked; k <= MOST_NEIGHBORS.
    """
    sizes = *rows.shape, own.shape[1], len(weight)
    _call(
        _BY_TYPE[own.dtype],
        "bpfn_propagate",
        own,
        other,
        rows,
        _panels(weight.t()[None]),
        *sizes,
        slope,
        result,
        argmax,
    )


def convolve(offsets: Tensor, features: Tensor, weights: Tensor, rows: Tensor, matrix: Tensor, result: Tensor) -> None:
    """`mix`, then times `matrix` (m, 3 + C, D), into `result` (R, D).

    If `fuses`; all but the matrix contiguous, rows checked.
    """
    inputs = offsets, features, weights, rows, _panels(matrix)
    sizes = *rows.shape, features.shape[1], weights.shape[2], matrix.shape[2]
    _call(_BY_TYPE[features.dtype], "bpfn_convolve", *inputs, *sizes, result)


def mix(offsets: Tensor, features: Tensor, weights: Tensor, rows: Tensor, result: Tensor) -> None:
    """sum_j weights[i, j, m] [offsets[i, j], features[rows[i, j]]] into `result` (R, m, 3 + C).

    All contiguous, rows checked.
    """
    sizes = *rows.shape, features.shape[1], weights.shape[2]
    _call(_BY_TYPE[features.dtype], "bpfn_mix", offsets, features, weights, rows, *sizes, result)


def mix_backward(
    gradient: Tensor, offsets: Tensor, features: Tensor, weights: Tensor, rows: Tensor, results: tuple[Tensor, ...]
) -> None:
    """Write the gradients of offsets and weights into the first and third of `results`; add that of features to the
    second. All contiguous, rows checked.
    """
    sizes = *rows.shape, features.shape[1], weights.shape[2]
    _call(_BY_TYPE[features.dtype], "bpfn_mix_backward", gradient, offsets, features, weights, rows, *sizes, *results)
