# SPDX-License-Identifier: MIT
"""Every point gets a flow, its own, whatever the sizes and the frame of the clouds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import LEAST, TINY, tiny_network

from bpfn_cli.errors import NonFiniteError, ShapeError, UsageError
from bpfn_cli.frames import FRAMES, axes_of, describe_frame
from bpfn_cli.models import BiPointFlowNet, Variant, slim
from bpfn_cli.models.predict import FlowPredictor, predict_flow
from bpfn_cli.models.reference import ReferenceNetwork

# The same cloud, x left, y up, z forward, in other axes: written out, not taken from FRAMES.
TO_FRAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "internal": lambda cloud: cloud,
    "lidar": lambda cloud: np.stack([cloud[:, 2], cloud[:, 0], cloud[:, 1]], axis=1),
    "camera": lambda cloud: np.stack([-cloud[:, 0], -cloud[:, 1], cloud[:, 2]], axis=1),
    "nuscenes": lambda cloud: np.stack([-cloud[:, 0], cloud[:, 2], cloud[:, 1]], axis=1),
    "flyingthings3d": lambda cloud: np.stack([-cloud[:, 0], cloud[:, 1], -cloud[:, 2]], axis=1),
}


class PointwiseNetwork:
    """Its flow is minus half of each point; it keeps the clouds it was given."""

    variant, shares_clouds = TINY, False

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


# --- sequences --------------------------------------------------------------------------------------


def encoder_runs(network: BiPointFlowNet) -> list[int]:
    """How many clouds are encoded at once, for each run of the encoder from now on."""
    found: list[int] = []
    network.level0.register_forward_hook(lambda module, inputs, output: found.append(len(inputs[0])))
    return found


def in_sequence(predictor: FlowPredictor, frames: list[np.ndarray]) -> list[np.ndarray]:
    pairs = list(pairwise(frames))
    return [predictor(*pair, keep=index < len(pairs) - 1) for index, pair in enumerate(pairs)]


@pytest.mark.parametrize("variant", [TINY, slim(TINY, "normed", bn=True)], ids=lambda variant: variant.name)
@pytest.mark.parametrize(
    ("points", "sizes", "encoded"),
    [
        (LEAST, [LEAST + 100] * 4, 4 * 2),  # two parts of each frame
        (LEAST, [3 * LEAST, LEAST, 2 * LEAST], 3 + 3 + 1),  # three parts of a target, one of them in the next pair
        (LEAST, [LEAST, LEAST, 3 * LEAST, LEAST], 1 + 1 + 1 + 2 + 3),  # one part of a target, three in the next pair
        (10**6, [LEAST + 2, LEAST + 1, LEAST], 4 + 4),  # parts of other sizes in both pairs: nothing to share
    ],
)
def test_sequence_is_predicted_as_its_pairs_with_one_encoding_of_each_part(
    variant: Variant, points: int, sizes: list[int], encoded: int
) -> None:
    frames, network = [cloud(size, seed) for seed, size in enumerate(sizes)], tiny_network(variant=variant)
    expected = [predict_flow(network, *pair, points=points, frame="lidar") for pair in pairwise(frames)]
    counted = encoder_runs(network)
    found = in_sequence(FlowPredictor(network, points=points, frame="lidar"), frames)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
    assert len(found) == len(sizes) - 1
    assert sum(counted) == encoded


def test_only_the_cloud_of_the_last_call_is_kept() -> None:
    frames, network = [cloud(LEAST, seed) for seed in range(3)], tiny_network()
    predictor, counted = FlowPredictor(network, points=LEAST), encoder_runs(network)
    predictor(frames[0], frames[1], keep=True)
    assert counted == [1, 1]
    assert np.array_equal(predictor(frames[0], frames[2]), predict_flow(network, frames[0], frames[2], points=LEAST))
    assert counted == [1, 1, 2, 2]
    predictor(frames[1], frames[2])
    assert counted == [1, 1, 2, 2, 2]


def test_nothing_is_shared_in_training_mode_or_on_the_plain_path() -> None:
    frames, reference = [cloud(LEAST, seed) for seed in range(3)], ReferenceNetwork(TINY, LEAST).eval()
    reference.load_state_dict(tiny_network().state_dict())
    for network in (tiny_network(variant=slim(TINY, "normed", bn=True)).train(), reference):
        found = in_sequence(FlowPredictor(network, points=LEAST), frames)
        for one, pair in zip(found, pairwise(frames), strict=True):
            assert np.array_equal(one, predict_flow(network, *pair, points=LEAST))
        with pytest.raises(RuntimeError, match="evaluation mode"):
            network.encode(torch.zeros(1, LEAST, 3))


def test_encode_and_estimate_check_their_clouds() -> None:
    network = tiny_network()
    with pytest.raises(ShapeError, match="1 points are NaN"):
        network.encode(torch.zeros(1, LEAST, 3).index_fill(1, torch.tensor(3), torch.nan))
    one, other = (network.encode(torch.from_numpy(cloud(size))[None]) for size in (LEAST, LEAST + 1))
    with pytest.raises(ShapeError, match="must have the same shape"):
        network.estimate(one, other)


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


def test_axes_say_where_x_y_and_z_point() -> None:
    pc1, pc2, network = cloud(LEAST), cloud(LEAST, 1), tiny_network()
    turned = TO_FRAME["nuscenes"]
    found = predict_flow(network, turned(pc1), turned(pc2), points=LEAST, frame="Right, forward,up")
    assert np.array_equal(found, turned(predict_flow(network, pc1, pc2, points=LEAST)))
    assert describe_frame("nuscenes") == "nuscenes (x right, y forward, z up)"
    assert describe_frame("right,up,forward") == "x right, y up, z forward"


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ("right,forwards,up", "forwards is not a direction; use three of left, .*did you mean forward?"),
        ("right,up", "not three perpendicular directions"),
        ("right,up,left", "not three perpendicular directions"),
        ("right,forward,up,", "not three perpendicular directions"),
        ("lidr", "lidr is not a direction"),
    ],
)
def test_axes_that_span_no_space_are_refused(axes: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        axes_of(axes)


# --- several splits ---------------------------------------------------------------------------------


class CountingNetwork(PointwiseNetwork):
    """The flow of a point is the number of the run, along x."""

    def flow(self, pc1: torch.Tensor) -> torch.Tensor:
        return torch.tensor([float(len(self.seen)), 0, 0]).expand(pc1.shape).clone()


def test_flows_of_several_splits_are_averaged_and_their_spread_is_known() -> None:
    network = CountingNetwork()
    predictor = FlowPredictor(network, points=LEAST, average=2)  # type: ignore[arg-type]
    estimate = predictor.estimate(cloud(2 * LEAST), cloud(2 * LEAST, 1))
    assert len(network.seen) == 4
    assert estimate.parts == 2
    assert set(estimate.flow[:, 0]) == {2, 2.5, 3}  # a point is in run 1 or 2, and in run 3 or 4
    assert estimate.flow[:, 0].mean() == pytest.approx(2.5)
    assert estimate.spread_m == pytest.approx(1.0)  # runs 1 and 3, or 2 and 4


def test_clouds_that_are_not_split_are_predicted_once() -> None:
    network = CountingNetwork()
    estimate = FlowPredictor(network, points=LEAST, average=4).estimate(cloud(LEAST), cloud(LEAST, 1))  # type: ignore[arg-type]
    assert (len(network.seen), estimate.parts, estimate.spread_m) == (1, 1, None)


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_flow_that_is_not_finite_is_refused_and_counted(value: float) -> None:
    class Diverged(PointwiseNetwork):
        def flow(self, pc1: torch.Tensor) -> torch.Tensor:
            flow = -pc1 / 2
            flow[0, 5, 1] = flow[0, 9] = value
            return flow

    with pytest.raises(NonFiniteError, match=rf"NaN or infinite at 4 of {2 * LEAST} points; it was not written"):
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
