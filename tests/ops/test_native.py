# SPDX-License-Identifier: MIT
"""The C loops, against torch: geometry to the last bit, the rest to rounding."""

from __future__ import annotations

import importlib
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bpfn_cli.errors import ShapeError
from bpfn_cli.models import build_model
from bpfn_cli.ops import convolve_neighbors, farthest_point_sample, knn, native, propagate_max
from bpfn_cli.ops.neighbors import knn_with_pykdtree
from bpfn_cli.ops.sampling import sample_with_torch

needs_native = pytest.mark.skipif(not native.has_native(), reason="the C loops are not built")


def test_loops_are_built_if_there_is_a_compiler() -> None:
    if sys.platform != "linux" or shutil.which("gcc") is None or os.environ.get("BPFN_NATIVE") == "0":
        pytest.skip("no gcc on Linux")
    assert native.has_native()


def cloud(kind: str, number: int, seed: int = 0) -> Tensor:
    generator = np.random.default_rng([seed, number])
    points = {
        "random": lambda: generator.normal(0, 5, (number, 3)),
        "grid": lambda: generator.integers(0, 5, (number, 3)),
        "duplicates": lambda: np.repeat(generator.normal(0, 5, (-(-number // 7), 3)), 7, axis=0)[:number],
        "far": lambda: np.add(generator.normal(0, 1, (number, 3)), [1e5, -1e5, 1e4]),
        "line": lambda: generator.normal(0, 5, (number, 1)) * [1, 0, 0],
        "one outlier": lambda: np.concatenate([np.full((1, 3), 1e7), generator.normal(0, 1, (number - 1, 3))]),
        "tiny": lambda: generator.normal(0, 1e-22, (number, 3)),  # squares vanish in float32
    }[kind]()
    return torch.from_numpy(points.astype(np.float32))[None]


KINDS = ["random", "grid", "duplicates", "far", "line", "one outlier", "tiny"]


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2, 511, 512, 513, 1500])
def test_samples_are_those_of_torch(kind: str, number: int) -> None:
    points = torch.cat([cloud(kind, number), cloud(kind, number, seed=1)])
    count = max(1, number // 2)
    assert torch.equal(native.sample(points, count), sample_with_torch(points, count))


def nearest_in_order(queries: Tensor, points: Tensor, k: int) -> Tensor:
    x, y, z = points[:, None].unbind(-1)
    distance = (queries[..., 0:1] - x) ** 2 + (queries[..., 1:2] - y) ** 2 + (queries[..., 2:3] - z) ** 2
    return distance.sort(dim=-1, stable=True).indices[..., :k]


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("number", "k"), [(1, 1), (5, 5), (16, 3), (17, 17), (100, 9), (1500, 1), (1500, 32), (600, 256)]
)
def test_neighbors_are_the_nearest_in_order_lowest_index_first(kind: str, number: int, k: int) -> None:
    points = torch.cat([cloud(kind, number), cloud(kind, number, seed=1)])
    queries = torch.cat([cloud(kind, 700, seed=2), cloud("random", 700, seed=3)])
    assert torch.equal(native.neighbors(queries, points, k), nearest_in_order(queries, points, k))
    assert torch.equal(native.neighbors(points, points, k), nearest_in_order(points, points, k))


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=1, max_size=80),
    st.lists(st.tuples(*[st.integers(-9, 9)] * 3), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_neighbors_of_small_whole_numbers(points: list, queries: list, k: int) -> None:
    found_in, asked = torch.tensor([points], dtype=torch.float32), torch.tensor([queries], dtype=torch.float32)
    k = min(k, len(points))
    assert torch.equal(native.neighbors(asked, found_in, k), nearest_in_order(asked, found_in, k))


@needs_native
def test_views_are_taken_as_they_look() -> None:
    points = torch.cat([cloud("random", 300), cloud("random", 300, seed=1)])
    part, turned, beginning = points[:, ::3], points.transpose(1, 2).contiguous().transpose(1, 2), points[:, :100]
    assert torch.equal(native.neighbors(part, turned, 4), nearest_in_order(part, points, 4))
    assert torch.equal(native.neighbors(beginning, beginning, 4), nearest_in_order(beginning, beginning, 4))
    assert torch.equal(native.sample(turned, 20), native.sample(points, 20))


@needs_native
def test_other_implementations_do_what_the_loops_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud("random", 400)
    for queries, k in ((points, 300), (points.double(), 8)):
        assert torch.equal(knn(queries, queries, k), knn_with_pykdtree(queries, queries, k))
    sampled, found = farthest_point_sample(points, 50), knn(points, points, 8)
    monkeypatch.setenv("BPFN_NATIVE", "0")
    assert not native.has_native()
    assert torch.equal(farthest_point_sample(points, 50), sampled)
    assert torch.equal(knn(points, points, 8), found)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def graph(rows: int, k: int, others: int) -> Tensor:
    return torch.randint(0, others, (rows, k), generator=torch.Generator().manual_seed(9))


def with_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    result = function(*leaves)
    result.backward(random(*result.shape, seed=8, dtype=result.dtype))
    return [result.detach(), *(x.grad for x in leaves if x.is_floating_point())]


@pytest.fixture(params=["1", "0"], ids=["with the product", "around the product"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops that include the matrix product, and those before and after one of a library."""
    if request.param == "1" and not native.fuses(torch.ones(1)):
        pytest.skip("this processor has no vectors of 64 bytes")
    monkeypatch.setenv("BPFN_FUSED", request.param)


SIZES = [(1, 1, 1, 1), (33, 5, 31, 7), (70, 9, 32, 128), (40, 32, 100, 65), (25, 16, 64, 64), (6, 256, 3, 2)]


@needs_native
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "k", "inner", "outer"), SIZES)
def test_propagation_equals_that_of_torch(
    rows: int, k: int, inner: int, outer: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [
        random(rows, inner, dtype=dtype),
        random(17, inner, seed=1, dtype=dtype),
        graph(rows, k, 17),
        random(outer, inner, seed=2, dtype=dtype),
    ]
    check_equal(propagate_max, inputs, monkeypatch)


@needs_native
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("middle", [1, 5, 256])
@pytest.mark.parametrize(("rows", "k", "channels", "outer"), SIZES)
def test_convolution_equals_that_of_torch(
    rows: int, k: int, channels: int, outer: int, middle: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [
        random(rows, k, 3, dtype=dtype),
        random(17, channels, seed=1, dtype=dtype),
        random(rows, k, middle, seed=2, dtype=dtype),
        graph(rows, k, 17),
        random(middle, 3 + channels, outer, seed=3, dtype=dtype),
    ]
    check_equal(convolve_neighbors, inputs, monkeypatch)


def check_equal(function, inputs: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the C loops and without; the tolerance is relative to the largest entry, as sums of many cancel."""
    found = with_gradients(function, inputs)
    monkeypatch.setenv("BPFN_NATIVE", "0")
    expected = with_gradients(function, inputs)
    tolerance = 1e-12 if inputs[0].dtype == torch.float64 else 1e-5
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@needs_native
@pytest.mark.parametrize("row", [-1, 17])
@pytest.mark.parametrize("gradient", [False, True])
def test_rows_that_do_not_exist_are_refused(row: int, gradient: bool) -> None:
    neighbors = graph(5, 3, 17)
    neighbors[2, 1] = row
    features = random(17, 4).requires_grad_(gradient)
    with pytest.raises(ShapeError, match=r"neighbors: found row numbers from .* 17 rows"):
        propagate_max(random(5, 4), features, neighbors, random(2, 4))
    with pytest.raises(ShapeError, match="17 rows"):
        convolve_neighbors(random(5, 3, 3), features, random(5, 3, 2), neighbors, random(2, 7, 1))


@needs_native
def test_threads_change_geometry_not_at_all_and_sums_by_rounding() -> None:
    points = torch.cat([cloud("random", 900), cloud("grid", 900)])
    inputs = [random(900, 32), random(900, 32, seed=1), graph(900, 8, 900), random(48, 32, seed=2)]
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            geometry = native.sample(points, 300), native.neighbors(points, points, 16)
            results.append((geometry, with_gradients(propagate_max, inputs)))
    finally:
        torch.set_num_threads(threads)
    (one_geometry, one), (other_geometry, other) = results
    assert all(torch.equal(a, b) for a, b in zip(one_geometry, other_geometry, strict=True))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@needs_native
def test_the_network_is_the_same_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("weightnet48", num_points=1024).double()
    clouds = cloud("random", 1024).double(), cloud("random", 1024, seed=1).double()
    flow = model(*clouds).flows[0]
    monkeypatch.setenv("BPFN_NATIVE", "0")
    torch.testing.assert_close(model(*clouds).flows[0], flow, rtol=1e-9, atol=1e-9)


@needs_native
def test_what_was_built_from_other_sources_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        native._load.cache_clear()
        monkeypatch.setattr(native, "fingerprint", lambda: 1)
        assert not native.has_native()
        assert "install bpfn again" in native.describe()
        monkeypatch.setenv("BPFN_NATIVE", "0")
        assert native.describe() == "disabled by BPFN_NATIVE=0"
    finally:
        native._load.cache_clear()


@needs_native
@pytest.mark.usefixtures("fused")
def test_first_of_equal_neighbors_gets_the_gradient() -> None:
    own, other = torch.ones(1, 2), torch.ones(12, 2, requires_grad=True)
    propagate_max(own, other, torch.arange(12)[None], torch.ones(40, 2)).sum().backward()
    assert other.grad is not None
    assert other.grad[0].tolist() == [40, 40] and not other.grad[1:].any()


@needs_native
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("neighbor", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_not_a_number_is_kept(neighbor: int, dtype: torch.dtype) -> None:
    """A network that has diverged must not look sound."""
    other, rows = random(5, 3, dtype=dtype), torch.arange(5)[None]
    other[neighbor, 1] = torch.nan
    inputs = [random(1, 3, seed=1, dtype=dtype), other, rows, random(4, 3, seed=2, dtype=dtype)]
    assert torch.isnan(propagate_max(*inputs)).all()
    inputs[0].requires_grad_()
    assert torch.isnan(propagate_max(*inputs)).all()


@needs_native
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_nan_goes_to_one_of_the_neighbors(dtype: torch.dtype) -> None:
    """The C loop fills its last block of 8 with copies of the last neighbor, which must not be named."""
    own, other, rows, weight = random(40, 8, dtype=dtype), random(13, 8, dtype=dtype), graph(40, 12, 13), random(24, 8)
    rows[:, -1] = 12
    other[12] = torch.nan
    largest, argmax = torch.ops.bpfn.propagate_max(own, other, rows, weight.to(dtype), True)
    assert largest.isnan().all()
    assert (argmax == 11).all()
    inputs = own, other.requires_grad_(), rows, weight.to(dtype).requires_grad_()
    propagate_max(*inputs).sum().backward()
    assert inputs[3].grad is not None and inputs[3].grad.isnan().all()


@needs_native
def test_shapes_and_types_that_do_not_fit_are_refused_or_turned() -> None:
    own, other, rows, weight = random(5, 4), random(17, 4), graph(5, 3, 17), random(2, 4)
    expected = propagate_max(own, other, rows, weight)
    torch.testing.assert_close(propagate_max(own, other, rows.int(), weight), expected)
    for bad in ((own[:1], other, rows), (own, other[:, :3], rows), (own[:, :3], other, rows), (own, other, rows[0])):
        with pytest.raises(ShapeError, match="found"):
            propagate_max(*bad, weight)
    offsets, weights, matrix = random(5, 3, 3), random(5, 3, 2), random(2, 7, 1)
    for bad in ((offsets[:4], other, weights), (offsets, other, weights[:, :2]), (offsets[:, :, :2], other, weights)):
        with pytest.raises(ShapeError, match="found"):
            convolve_neighbors(*bad, rows, matrix)
    with pytest.raises(ShapeError, match=r"matrix: found \(2, 5, 1\), expected \(2, 7, 1\)"):
        convolve_neighbors(offsets, other, weights, rows, random(2, 5, 1))
    assert convolve_neighbors(offsets, random(17, 0), weights, rows, random(2, 3, 1)).shape == (5, 1)
    leaf = random(17, 0).requires_grad_()
    convolve_neighbors(offsets, leaf, weights, rows, random(2, 3, 1)).sum().backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("shape", [(2, 40, 2), (2, 40, 6), (40, 3)])
def test_other_shapes_than_clouds_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="found"):
        farthest_point_sample(torch.zeros(shape), 5)
    with pytest.raises(ShapeError, match="found"):
        knn(torch.zeros(shape), torch.zeros(shape), 5)
    with pytest.raises(ShapeError, match="found"):
        knn(torch.zeros(4, 40, 3), torch.zeros(1, 40, 3), 5)


@needs_native
def test_views_of_one_memory_are_told_apart() -> None:
    base = cloud("random", 2000)
    queries, points = base[:, :1000], base[:, ::2]
    assert torch.equal(native.neighbors(queries, points, 4), nearest_in_order(queries, points, 4))
    pair = torch.cat([cloud("random", 300), cloud("random", 300, seed=1)])
    still = pair[:1].expand(2, -1, -1)
    assert torch.equal(native.neighbors(still, pair, 4), nearest_in_order(still, pair, 4))
    assert torch.equal(native.neighbors(pair, still, 4), nearest_in_order(pair, still, 4))


def test_enormous_coordinates_have_different_neighbors() -> None:
    found = knn(cloud("random", 50) * 1e25, cloud("random", 50) * 1e25, 4)
    assert torch.equal(found.sort(dim=-1).values, knn(cloud("random", 50), cloud("random", 50), 4).sort(dim=-1).values)


@pytest.mark.parametrize("content", [b"", b"\x7fELF but not really"])
def test_damaged_library_is_not_used(content: bytes, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_damaged.so").write_bytes(content)
    spec = importlib.util.spec_from_file_location("_damaged", tmp_path / "_damaged.so")
    monkeypatch.setattr(native, "find_spec", lambda name: spec)
    assert native._load.__wrapped__("_geometry") is None
