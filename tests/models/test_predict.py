# SPDX-License-Identifier: MIT
"""Every point gets a flow, its own, whatever the sizes and the frame of the clouds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import LEAST, TINY, tiny_network

from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.models.predict import FRAMES, _deal, predict_flow

# The same cloud, x left, y up, z forward, in other axes: written out, not taken from FRAMES.
TO_FRAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "internal": lambda cloud: cloud,
    "lidar": lambda cloud: np.stack([cloud[:, 2], cloud[:, 0], cloud[:, 1]], axis=1),
    "camera": lambda cloud: np.stack([-cloud[:, 0], -cloud[:, 1], cloud[:, 2]], axis=1),
    "flyingthings3d": lambda cloud: np.stack([-cloud[:, 0], cloud[:, 1], -cloud[:, 2]], axis=1),
}


class PointwiseNetwork:
    """Its flow is minus half of each point; it keeps the clouds it was given."""

    variant = TINY

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, pc1: torch.Tensor, pc2: torch.Tensor) -> Any:
        assert pc1.dtype == pc2.dtype == torch.float32
        self.seen.append((pc1[0].numpy(), pc2[0].numpy()))
        return SimpleNamespace(flows=[self.flow(pc1)])

    def flow(self, pc1: torch.Tensor) -> torch.Tensor:
        return -pc1 / 2


def cloud(points: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform((-5, -2, 2), (5, 3, 30), (points, 3)).astype(np.float32)


def run(pc1: np.ndarray, pc2: np.ndarray, **options: Any) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    network = PointwiseNetwork()
    flow = predict_flow(network, pc1, pc2, **{"points": LEAST, **options})  # type: ignore[arg-type]
    return flow, network.seen


def times_seen(rows: np.ndarray, parts: list[np.ndarray]) -> list[int]:
    """How often each row of a cloud stands in the parts, none of which holds one twice."""
    for part in parts:
        assert len(np.unique(part, axis=0)) == len(part)
    given = {tuple(row): 0 for row in rows.tolist()}
    for row in np.concatenate(parts).tolist():
        given[tuple(row)] += 1
    return list(given.values())


# --- dealing ----------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_deal_into_just_enough_parts_holds_each_row_and_fills_only_the_last(count: int, size: int, seed: int) -> None:
    size = min(size, count)
    parts = -(-count // size)
    dealt = _deal(count, parts, size, np.random.default_rng(seed))
    assert dealt.shape == (parts, size)
    assert all(len(set(part)) == size for part in dealt.tolist())
    assert set(dealt.ravel()) == set(range(count))
    whole = dealt[:-1].ravel().tolist()
    assert len(set(whole)) == len(whole)  # what is dealt twice stands in the last part
    assert np.bincount(dealt.ravel()).max() <= 2


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 40), st.integers(0, 9))
def test_deal_of_any_number_of_parts_repeats_nothing_inside_one(count: int, parts: int, size: int, seed: int) -> None:
    size = min(size, count)
    dealt = _deal(count, parts, size, np.random.default_rng(seed))
    assert dealt.shape == (parts, size)
    assert all(len(set(part)) == size for part in dealt.tolist())
    assert set(dealt.ravel()) <= set(range(count))
    if parts * size <= count:
        assert len(set(dealt.ravel())) == parts * size
    else:
        assert len(set(dealt.ravel())) == count


# --- clouds -----------------------------------------------------------------------------------------


def test_each_point_is_predicted_once_and_gets_its_own_flow() -> None:
    pc1, pc2 = cloud(3 * LEAST), cloud(3 * LEAST, 1)
    flow, seen = run(pc1, pc2)
    assert np.array_equal(flow, -pc1 / 2)
    assert flow.dtype == np.float32
    assert len(seen) == 3
    for rows, parts in zip((pc1, pc2), zip(*seen, strict=True), strict=True):
        assert times_seen(rows, list(parts)) == [1] * 3 * LEAST


def test_last_part_is_filled_up_with_others() -> None:
    pc1, pc2 = cloud(2 * LEAST + 10), cloud(2 * LEAST + 10, 1)
    flow, seen = run(pc1, pc2)
    assert np.array_equal(flow, -pc1 / 2)
    assert [len(part) for part, _ in seen] == [LEAST] * 3
    times = times_seen(pc1, [part for part, _ in seen])
    assert (times.count(1), times.count(2)) == (LEAST + 20, LEAST - 10)


@pytest.mark.parametrize(
    # points asked for, of cloud 1 and 2 -> points and number of parts
    ("asked", "first", "second", "size", "parts"),
    [
        (10**6, LEAST + 1, LEAST + 1, LEAST + 1, 1),
        (10**6, LEAST, 3 * LEAST, LEAST, 1),
        (10**6, 3 * LEAST, LEAST, LEAST, 3),
        (LEAST, 2 * LEAST + 1, LEAST + 7, LEAST, 3),
        (LEAST + 1, LEAST + 7, 4 * LEAST, LEAST + 1, 2),
    ],
)
def test_clouds_of_different_sizes(asked: int, first: int, second: int, size: int, parts: int) -> None:
    pc1, pc2 = cloud(first), cloud(second, 1)
    flow, seen = run(pc1, pc2, points=asked)
    assert np.array_equal(flow, -pc1 / 2)
    assert [(len(one), len(other)) for one, other in seen] == [(size, size)] * parts
    assert min(times_seen(pc1, [part for part, _ in seen])) == 1
    times = times_seen(pc2, [part for _, part in seen])
    if parts * size <= second:
        assert max(times) == 1
    else:
        assert min(times) >= 1


def test_progress_counts_the_parts() -> None:
    calls: list[tuple[int, int]] = []
    run(cloud(2 * LEAST), cloud(LEAST, 1), progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]


def test_seed_decides_the_parts() -> None:
    pc1, pc2 = cloud(2 * LEAST), cloud(2 * LEAST, 1)
    network = tiny_network()
    flows = [predict_flow(network, pc1, pc2, points=LEAST, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(flows[0], flows[1])
    assert not np.array_equal(flows[0], flows[2])
    (_, first), (_, same), (_, other) = (run(pc1, pc2, seed=seed) for seed in (0, 0, 1))
    for k in (0, 1):
        assert np.array_equal(first[0][k], same[0][k])
        assert not np.array_equal(first[0][k], other[0][k])


def test_clouds_are_left_as_they_were() -> None:
    pc1, pc2 = cloud(LEAST), cloud(LEAST, 1)
    pc1.flags.writeable = pc2.flags.writeable = False
    run(pc1, pc2, frame="lidar")


# --- frames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", FRAMES)
def test_flow_is_the_same_motion_in_any_frame(frame: str) -> None:
    pc1, pc2 = cloud(LEAST + 50), cloud(LEAST + 20, 1)
    network, turned = tiny_network(), TO_FRAME[frame]
    expected = predict_flow(network, pc1, pc2, points=LEAST)
    found = predict_flow(network, turned(pc1), turned(pc2), points=LEAST, frame=frame)
    assert np.array_equal(found, turned(expected))
    assert expected.any()


@pytest.mark.parametrize("frame", FRAMES)
def test_network_sees_the_internal_frame(frame: str) -> None:
    pc1 = cloud(LEAST)
    flow, seen = run(TO_FRAME[frame](pc1), TO_FRAME[frame](pc1), frame=frame)
    assert times_seen(pc1, [seen[0][0]]) == times_seen(pc1, [seen[0][1]]) == [1] * LEAST
    assert np.array_equal(flow, TO_FRAME[frame](-pc1 / 2))


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_flow_that_is_not_finite_is_refused_and_counted(value: float) -> None:
    class Diverged(PointwiseNetwork):
        def flow(self, pc1: torch.Tensor) -> torch.Tensor:
            flow = -pc1 / 2
            flow[0, 5, 1] = flow[0, 9] = value
            return flow

    with pytest.raises(NonFiniteError, match=rf"NaN or infinite at 4 of {2 * LEAST} points; nothing was written"):
        predict_flow(Diverged(), cloud(2 * LEAST), cloud(LEAST), points=LEAST)  # type: ignore[arg-type]


def test_cloud_that_is_not_finite_is_refused() -> None:
    bad = cloud(LEAST)
    bad[3, 1] = np.nan
    with pytest.raises(ShapeError, match="pc2: 1 points are NaN"):
        predict_flow(tiny_network(), cloud(LEAST), bad, points=LEAST)


def test_too_few_points_are_refused_with_both_numbers() -> None:
    few, enough = cloud(LEAST - 1), cloud(LEAST)
    for name, clouds in (("pc1", (few, enough)), ("pc2", (enough, few))):
        with pytest.raises(ShapeError, match=f"{name} has {LEAST - 1} points, the network needs at least {LEAST};"):
            run(*clouds)
    with pytest.raises(ShapeError, match=f"--points {LEAST - 1}: the network needs at least {LEAST}"):
        run(enough, enough, points=LEAST - 1)


LARGE = """
import numpy as np, resource, torch
from bpfn_cli.models import build_model
from bpfn_cli.models.predict import predict_flow
rng = np.random.default_rng(0)
ring, azimuth = np.arange(65536) % 64, np.arange(65536) * (2 * np.pi / 1024)
depth = (4 + 0.8 * ring) * (1 + 0.01 * rng.random(65536))
pc1 = np.stack([depth * np.cos(azimuth), -1.7 + 0.05 * ring, depth * np.sin(azimuth)], axis=1).astype(np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
flow = predict_flow(build_model("weightnet4"), pc1, pc1 + np.float32(0.3), points=65536)
assert np.isfinite(flow).all() and flow.shape == (65536, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_cloud_of_65536_points_in_one_piece_takes_no_quadratic_memory() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2000  # MB; a matrix of all pairs would take 17,000
