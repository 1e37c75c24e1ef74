# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.ops import (
    build_pyramid,
    farthest_point_sample,
    gather,
    interpolate,
    inverse_distance_weights,
    knn,
    level_sizes,
    reference,
    upsample,
    warp,
)
from bpfn_cli.ops.neighbors import knn_on_cpu, knn_with_torch
from bpfn_cli.ops.pyramid import PyramidShape, check_clouds
from bpfn_cli.ops.sampling import sample_with_numpy, sample_with_torch
from bpfn_cli.structures import CloudPyramid


def cloud(*points: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor([points], dtype=torch.float32)


def lidar_like(count: int, seed: int) -> np.ndarray:
    """Rings at a few elevations: dense near the sensor, sparse far away."""
    generator = np.random.default_rng(seed)
    ring = generator.integers(0, 16, count)
    azimuth = generator.uniform(-np.pi, np.pi, count)
    distance = 2 + generator.exponential(15, count)
    elevation = np.deg2rad(-15 + 2 * ring)
    x, z = np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth)
    return (np.stack([x, np.sin(elevation), z], axis=1) * distance[:, None]).astype(np.float32)


def clouds_of_kind(kind: str, count: int = 700) -> torch.Tensor:
    generator = np.random.default_rng(3)
    if kind == "lidar":
        parts = [lidar_like(count, 1), lidar_like(count, 2)]
    elif kind == "duplicates":
        parts = [np.repeat(generator.normal(0, 5, (count // 7, 3)), 7, axis=0) for _ in range(2)]
    elif kind == "grid":
        parts = [generator.integers(0, 6, (count, 3)) for _ in range(2)]
    elif kind == "far":
        parts = [generator.normal(0, 5, (count, 3)) + 1e4 for _ in range(2)]
    else:
        parts = [generator.normal(0, 5, (count, 3)) for _ in range(2)]
    return torch.from_numpy(np.stack(parts).astype(np.float32))


KINDS = ("random", "lidar", "duplicates", "grid", "far")


def test_farthest_point_sample_by_hand() -> None:
    points = cloud((0, 0, 0), (1, 0, 0), (5, 0, 0), (2, 0, 0), (5, 0, 0))
    # 5 m is farthest, index 2 before its twin 4; then 2 m (2 m from 0, 3 m from 5); then 1 m; then all distances
    # are zero and the lowest index wins.
    expected = [[0, 2, 3, 1, 0]]
    assert farthest_point_sample(points, 5).tolist() == expected
    assert reference.farthest_point_sample(points, 5).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_farthest_point_sample_numpy_equals_torch(kind: str) -> None:
    points = clouds_of_kind(kind)
    assert torch.equal(sample_with_numpy(points, 300), sample_with_torch(points, 300))


@pytest.mark.parametrize("kind", KINDS)
def test_farthest_point_sample_starts_with_the_shorter_one(kind: str) -> None:
    points = clouds_of_kind(kind)
    long = farthest_point_sample(points, 200)
    assert torch.equal(long[:, :60], farthest_point_sample(points, 60))
    again = farthest_point_sample(gather(points, long), 60)
    assert torch.equal(gather(points, long[:, :60]), gather(gather(points, long), again))


def test_farthest_point_sample_of_equal_points_takes_the_first() -> None:
    points = torch.ones(1, 20, 3)
    assert farthest_point_sample(points, 3).tolist() == [[0, 0, 0]]
    assert sample_with_torch(points, 3).tolist() == [[0, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=1, max_size=40), st.integers(1, 40))
def test_farthest_point_sample_backends_agree_at_ties(points: list[tuple[int, int, int]], count: int) -> None:
    tensor = torch.tensor([points], dtype=torch.float32)
    count = min(count, len(points))
    assert torch.equal(sample_with_numpy(tensor, count), sample_with_torch(tensor, count))


@pytest.mark.parametrize("count", [0, 6, -1])
def test_farthest_point_sample_refuses_an_impossible_count(count: int) -> None:
    with pytest.raises(ShapeError, match="from 5"):
        farthest_point_sample(torch.zeros(1, 5, 3), count)


@pytest.mark.parametrize("k", [1, 3, 16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_knn_tree_equals_torch_and_brute_force(kind: str, k: int) -> None:
    points, queries = clouds_of_kind(kind), clouds_of_kind(kind).flip(0)
    exact = torch.cdist(queries.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = exact.sort(dim=-1).values[..., :k]
    for found in (knn_on_cpu(queries, points, k), knn_with_torch(queries, points, k)):
        assert found.shape == (2, 700, k)
        assert (found.sort(dim=-1).values.diff(dim=-1) > 0).all(), "a neighbor is named twice"
        distances = exact.gather(2, found)
        torch.testing.assert_close(distances, expected, rtol=1e-6, atol=1e-6)


def test_knn_works_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    points = clouds_of_kind("random")
    whole = knn_with_torch(points, points, 4)
    monkeypatch.setattr("bpfn_cli.ops.neighbors.CHUNK_ELEMENTS", 10 * 2 * 700)
    assert torch.equal(knn_with_torch(points, points, 4), whole)


def test_knn_by_hand_nearest_first() -> None:
    points = cloud((0, 0, 0), (3, 0, 0), (1, 0, 0))
    for search in (knn, reference.knn):
        assert search(cloud((0.9, 0, 0)), points, 3).tolist() == [[[2, 0, 1]]]


@pytest.mark.parametrize("k", [0, 4])
def test_knn_refuses_k_out_of_range(k: int) -> None:
    with pytest.raises(ShapeError, match=f"{k} neighbors.*3 points"):
        knn(torch.zeros(1, 5, 3), torch.zeros(1, 3, 3), k)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_knn_refuses_queries_that_are_not_finite(value: float, k: int, axis: int) -> None:
    points = clouds_of_kind("random")
    for row in (0, 350, 699):
        bad = points.clone()
        bad[1, row, axis] = value
        with pytest.raises(NonFiniteError, match="points became NaN or infinite"):
            knn(bad, points, k)
        with pytest.raises(NonFiniteError):
            knn(bad, bad, k)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_knn_refuses_a_whole_cloud_that_is_not_finite(value: float) -> None:
    points = clouds_of_kind("random")
    with pytest.raises(NonFiniteError):
        knn(points, torch.full_like(points, value), 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_knn_refuses_a_point_that_is_not_finite(value: float) -> None:
    points = clouds_of_kind("random")
    bad = points.clone()
    bad[1, 350, 1] = value
    with pytest.raises(NonFiniteError):
        knn(points, bad, 3)


def test_gather_takes_rows_of_its_own_cloud_and_differentiates() -> None:
    values = torch.arange(12.0).view(2, 3, 2).requires_grad_()
    found = gather(values, torch.tensor([[[2, 0]], [[1, 1]]]))
    assert found.tolist() == [[[[4, 5], [0, 1]]], [[[8, 9], [8, 9]]]]
    found.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[[1, 1], [0, 0], [1, 1]], [[0, 0], [2, 2], [0, 0]]]


def test_interpolation_by_hand() -> None:
    sparse = cloud((1, 0, 0), (-2, 0, 0), (0, 4, 0), (0, 0, 100))
    values = torch.tensor([[[10.0, 1], [20, 1], [40, 1], [1e6, 1]]])
    # At the origin: weights 1, 1/2, 1/4 over 7/4 -> 4/7, 2/7, 1/7; (40 + 40 + 40) / 7.
    neighbors = knn(cloud((0, 0, 0)), sparse, 3)
    weights = inverse_distance_weights(cloud((0, 0, 0)), sparse, neighbors)
    torch.testing.assert_close(weights, torch.tensor([[[4 / 7, 2 / 7, 1 / 7]]]))
    result = upsample(cloud((0, 0, 0)), sparse, values)
    torch.testing.assert_close(result, torch.tensor([[[120 / 7, 1.0]]]))
    torch.testing.assert_close(interpolate(values, neighbors, weights), result)


def test_interpolation_at_a_sparse_point_is_its_value_and_at_coincident_points_finite() -> None:
    sparse = cloud((1, 0, 0), (-2, 0, 0), (0, 4, 0))
    values = torch.tensor([[[10.0], [20], [40]]])
    torch.testing.assert_close(upsample(sparse, sparse, values), values)
    same = torch.ones(1, 3, 3)
    torch.testing.assert_close(upsample(same, same, values), torch.full((1, 3, 1), 70 / 3))


def test_upsample_refuses_fewer_than_three() -> None:
    with pytest.raises(ShapeError, match=r"3 neighbors.*2 points"):
        upsample(torch.zeros(1, 4, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 1))


def test_warp_by_hand() -> None:
    source = cloud((0, 0, 0), (2, 0, 0), (0, 3, 0))
    flow = cloud((1, 0, 0), (0, 0, 1), (0, 0, 0))
    # source + flow: (1,0,0), (2,0,1), (0,3,0). Target (1,0,2): distances 2, sqrt 2, sqrt 14.
    a, b, c = 1 / 2, 1 / 2**0.5, 1 / 14**0.5
    total = a + b + c
    expected = cloud((1 - a / total, 0, 2 - b / total))
    torch.testing.assert_close(warp(source, cloud((1, 0, 2)), flow), expected)


def test_warp_of_the_moved_cloud_returns_it() -> None:
    source = clouds_of_kind("random", 70)
    flow = torch.full_like(source, 0.25)
    torch.testing.assert_close(warp(source, source + flow, flow), source)


def test_level_sizes() -> None:
    assert level_sizes(8192, (4, 4, 2, 4)) == (8192, 2048, 512, 256, 64)


def test_pyramid_holds_what_the_reference_finds() -> None:
    torch.manual_seed(0)
    pc1, pc2 = torch.randn(2, 1, 512, 3).unbind()
    pyramid = build_pyramid(pc1, pc2, PyramidShape((4, 2), 8, 9))
    for half, finer in ((pyramid.source, pc1), (pyramid.target, pc2)):
        check_levels(half, finer)


def check_levels(pyramid: CloudPyramid, finer: torch.Tensor) -> None:
    for level, count in ((1, 128), (2, 64)):
        indices = reference.farthest_point_sample(finer, count)
        coarser = gather(finer, indices)
        assert torch.equal(pyramid.sample_indices[level], indices)
        assert torch.equal(pyramid.points[level], coarser)
        assert torch.equal(pyramid.down_neighbors[level], reference.knn(coarser, finer, 8))
        assert torch.equal(pyramid.up_neighbors[level - 1], reference.knn(finer, coarser, 3))
        finer = coarser


def test_check_clouds_names_the_cloud_and_both_numbers() -> None:
    good = torch.rand(1, 64, 3)
    check_clouds(good, good, 64)
    with pytest.raises(ShapeError, match=r"pc2: 63 points.*at least 64"):
        check_clouds(good, good[:, :63], 64)
    with pytest.raises(ShapeError, match=r"pc1.*\(64, 3\)"):
        check_clouds(good[0], good, 64)
    with pytest.raises(ShapeError, match="int64"):
        check_clouds(good.long(), good, 64)
    with pytest.raises(ShapeError, match="same shape"):
        check_clouds(good, torch.rand(1, 65, 3), 64)
    bad = good.clone()
    bad[0, 3, 1], bad[0, 9] = torch.nan, torch.inf
    with pytest.raises(ShapeError, match="pc2: 2 points are NaN"):
        check_clouds(good, bad, 64)
