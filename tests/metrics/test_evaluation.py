# SPDX-License-Identifier: MIT
"""Baselines by hand; equal points for all predictors, reproducible figures, and no NaN in a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import LEAST, Quiet, Scenes, tiny_network, write_things

from bpfn_cli.data.datasets import FORMATS, Format, SceneDataset, open_dataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.errors import NonFiniteError, ShapeError
from bpfn_cli.metrics.evaluation import BASELINES, evaluate, evaluate_checkpoint, network_flow
from bpfn_cli.models import save_checkpoint
from bpfn_cli.models.predict import predict_flow
from bpfn_cli.reporting.rows import Protocol
from bpfn_cli.structures import Camera, FlowBatch, Scene

# Metres. Nearest to the first point is where the second one goes, (1, 0.5, 10), and the first goes near the third.
PC1 = np.array([(0, 0, 10), (1, 0, 10), (0, 4, 10)], np.float32)
FLOW = np.array([(0, 3, 0), (0, 0.5, 0), (0, 0, -0.25)], np.float32)
LENS = Camera(focal=100.0, cx=0.0, cy=0.0)


@dataclass(frozen=True)
class Given:
    """A dataset of given scenes."""

    scenes: tuple[Scene, ...]
    kind: str = "flyingthings3d"
    root: Path = Path()
    split: str = "test"
    sample = SceneDataset.sample

    @property
    def format(self) -> Format:
        return FORMATS[self.kind]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(scene.name for scene in self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def load(self, index: int) -> Scene:
        return self.scenes[index]


def three_points(name: str = "a", camera: Camera | None = LENS) -> Scene:
    return Scene(name, PC1, PC1 + FLOW, FLOW, camera)


def standing(name: str = "b") -> Scene:
    return Scene(name, PC1, PC1, 0 * FLOW, LENS)


def rounded(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 5) for name, value in metrics.items()}


def test_baselines_by_hand_on_three_points() -> None:
    means = evaluate(BASELINES, Given((three_points(),)), points=3).means
    # Errors 3, 0.5, 0.25 m: all above 5 and 10 %. Pixels, v = 100 y / z: 30, 5, 100 (4 / 9.75 - 4 / 10) = 1.02564.
    assert rounded(means["zero_flow"]) == {
        "epe3d": 1.25,
        "acc3d_strict": 0,
        "acc3d_relax": 0,
        "outliers3d": 1,
        "epe2d": 12.00855,
        "acc2d": 0.33333,
    }
    # The first goes to the second's place: |(1, 0.5) - (0, 3)| = sqrt(7.25) m, sqrt(725) pixels; the others are right.
    assert rounded(means["nearest_neighbor"]) == {
        "epe3d": round(math.sqrt(7.25) / 3, 5),
        "acc3d_strict": 0.66667,
        "acc3d_relax": 0.66667,
        "outliers3d": 0.33333,
        "epe2d": round(math.sqrt(725) / 3, 5),
        "acc2d": 0.66667,
    }


def test_rigid_icp_row_finds_the_motion_of_the_whole_cloud() -> None:
    pc1 = np.random.default_rng(0).uniform(-5, 5, (200, 3)).astype(np.float32)
    flow = np.full_like(pc1, (0.1, 0, -2))
    means = evaluate(BASELINES, Given((Scene("a", pc1, pc1 + flow, flow, LENS),)), points=200).means
    assert means["rigid_icp"].epe3d < 1e-3
    assert means["nearest_neighbor"].epe3d > 0.5


def test_means_are_over_scenes() -> None:
    measured = evaluate(BASELINES, Given((three_points("a"), standing("b"))), points=3)
    assert [scene.name for scene in measured.scenes] == ["a", "b"]
    assert [scene.metrics["zero_flow"].epe3d for scene in measured.scenes] == [1.25, 0]
    assert measured.means["zero_flow"].epe3d == 0.625
    assert measured.means["zero_flow"].outliers3d == 0.5


def test_scenes_without_a_camera_have_no_2d_figures() -> None:
    means = evaluate(BASELINES, Given((three_points(camera=None),)), points=3).means
    assert list(means) == ["zero_flow", "nearest_neighbor", "rigid_icp"]
    assert (means["zero_flow"].epe3d, means["zero_flow"].epe2d, means["zero_flow"].acc2d) == (1.25, None, None)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_evaluate_names_the_scene_of_a_prediction_that_is_not_finite(value: float) -> None:
    def predict(batch: FlowBatch) -> torch.Tensor:
        flow = batch.flow.clone()
        if batch.names == ("b\x1b",):
            flow[0, 1, 2] = value
        return flow

    done: list[tuple[int, int]] = []
    dataset = Given((three_points("a"), three_points("b\x1b"), three_points("c")))
    with pytest.raises(NonFiniteError) as error:
        evaluate({"model": predict}, dataset, points=3, progress=lambda *call: done.append(call))
    assert str(error.value) == (
        r"scene b\x1b: the prediction is NaN or infinite at 1 of 3 points; nothing was averaged"
    )
    assert done == [(1, 3)]


def test_evaluation_is_reproducible_and_depends_on_the_seed() -> None:
    dataset = Scenes()
    predictors = {"model": network_flow(tiny_network()), **BASELINES}
    first, second, other = (evaluate(predictors, dataset, points=LEAST, seed=seed) for seed in (0, 0, 1))
    assert first == second
    for name in predictors:
        assert first.means[name].epe3d != other.means[name].epe3d


def test_all_predictors_get_the_same_points_of_each_scene() -> None:
    seen: dict[str, list[FlowBatch]] = {"one": [], "two": []}

    def keep(name: str) -> object:
        return lambda batch: seen[name].append(batch) or batch.flow

    dataset = Scenes(points=50)
    measured = evaluate({name: keep(name) for name in seen}, dataset, points=20)  # type: ignore[misc]
    assert measured.means["one"].epe3d == 0
    for one, two in zip(seen["one"], seen["two"], strict=True):
        assert one.pc1.shape == (1, 20, 3)
        assert torch.equal(one.pc1, two.pc1)
        assert torch.equal(one.pc2, two.pc2)
    assert not torch.equal(seen["one"][0].pc1, seen["one"][1].pc1)


def test_points_of_a_scene_do_not_depend_on_other_scenes() -> None:
    dataset = Scenes(names=("a", "b", "c"), points=50)
    whole = evaluate(BASELINES, dataset, points=20)
    part = evaluate(BASELINES, dataset, points=20, indices=[2, 0])
    assert [scene.name for scene in part.scenes] == ["c", "a"]
    assert part.scenes == (whole.scenes[2], whole.scenes[0])
    assert part.means["zero_flow"].epe3d == pytest.approx(
        (whole.scenes[0].metrics["zero_flow"].epe3d + whole.scenes[2].metrics["zero_flow"].epe3d) / 2
    )


def test_progress_counts_the_chosen_scenes() -> None:
    calls: list[tuple[int, int]] = []
    dataset = Scenes(names=("a", "b", "c"), points=20)
    evaluate(BASELINES, dataset, points=20, indices=[1, 2], progress=lambda *call: calls.append(call))
    assert calls == [(1, 2), (2, 2)]


def test_evaluate_rejects_an_empty_choice_of_scenes() -> None:
    with pytest.raises(ShapeError, match="no scene"):
        evaluate(BASELINES, Scenes(), points=20, indices=[])


def test_network_is_evaluated_in_evaluation_mode_without_gradients() -> None:
    network = tiny_network().train()
    batch = FlowBatch(*torch.rand(3, 1, LEAST, 3).unbind(), names=("a",))
    flow = network_flow(network)(batch)
    assert not network.training
    assert not flow.requires_grad
    assert flow.shape == (1, LEAST, 3)
    swapped = replace(batch, pc1=batch.pc2, pc2=batch.pc1)
    assert not torch.equal(network_flow(network)(swapped), flow)


def test_hidden_points_are_left_out_except_in_the_full_rows() -> None:
    scene = replace(three_points(), valid=np.array([True, True, False]))
    means = evaluate(BASELINES, Given((scene,), "flyingthings3d_occluded"), points=3).means
    # Errors of zero flow 3, 0.5 and, hidden, 0.25 m.
    assert means["zero_flow"].epe3d == pytest.approx(1.75)
    assert means["zero_flow_full"].epe3d == pytest.approx(1.25)
    assert set(means) == {f"{name}{suffix}" for name in BASELINES for suffix in ("", "_full")}
    # The flow of these points of a LiDAR log is unknown.
    assert set(evaluate(BASELINES, Given((scene,), "lidar_logs"), points=3).means) == set(BASELINES)


def test_scene_is_measured_at_its_only_point_with_known_flow() -> None:
    pc1 = np.random.default_rng(0).uniform(-5, 5, (500, 3)).astype(np.float32)
    flow = np.full((500, 3), 9, np.float32)
    flow[321] = (0, 3, 4)
    scene = Scene("a", pc1, pc1 + flow, flow, LENS, np.arange(500) == 321)
    assert evaluate(BASELINES, Given((scene,)), points=20).means["zero_flow"].epe3d == pytest.approx(5)


def test_errors_of_moving_and_static_points_by_hand() -> None:
    """Nineteen static points and one that moves by 1 m, which is the only error of zero flow."""
    pc1 = np.random.default_rng(0).uniform(-5, 5, (20, 3)).astype(np.float32)
    flow = np.zeros((20, 3), np.float32)
    flow[7] = (0, 0, 1)
    scenes = Given((Scene("a", pc1, pc1 + flow, flow, LENS), standing()))
    measured = evaluate({"model": BASELINES["zero_flow"]}, scenes, points=20, by_class=True)
    motion = measured.by_class["motion"]
    assert motion.points == (1, 19 + 20)
    assert motion.epe3d("model") == (pytest.approx(1), 0)
    assert "three-way" not in measured.by_class
    nothing_moves = evaluate(BASELINES, Given((standing(),)), points=3, by_class=True).by_class["motion"]
    assert (nothing_moves.points, nothing_moves.epe3d("zero_flow")) == ((0, 3), (None, 0))
    assert evaluate(BASELINES, Given((standing(),)), points=3).by_class == {}


def test_classes_change_none_of_the_six_metrics() -> None:
    """The expected numbers were measured before there were classes."""
    predictors = {"model": lambda batch: batch.flow * 0.5, **BASELINES}
    scenes = Scenes(names=("a", "b", "c"), points=300)
    plain, by_class = (evaluate(predictors, scenes, points=200, by_class=asked).means for asked in (False, True))
    assert plain == by_class
    before = (0.4015269351514315, 0.0016666666666666668, 0.013333333333333334, 1.0, 36.71793866903845, 0.035)
    assert tuple(plain["model"].values()) == pytest.approx(before, rel=1e-14)


def test_checkpoint_evaluated_in_parts_sees_few_points_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    dataset = open_dataset(write_things(tmp_path / "things", points=2 * LEAST + 30), "test")
    save_checkpoint(path, tiny_network())
    how = {"points": 2 * LEAST, "seed": 3, "device": torch.device("cpu"), "progress": Quiet()}
    whole, parted = (evaluate_checkpoint(path, dataset, parts=parts, **how) for parts in (None, LEAST))
    (batch,) = evaluation_batches(dataset, [0], points=2 * LEAST, batch_size=1, seed=3)
    flow = predict_flow(tiny_network(), batch.pc1[0].numpy(), batch.pc2[0].numpy(), points=LEAST, seed=3)
    error = torch.linalg.vector_norm(torch.from_numpy(flow) - batch.flow[0], dim=-1).mean()
    assert parted.scenes[0].model == pytest.approx(float(error), rel=1e-4)
    assert parted.scenes[0].model != pytest.approx(whole.scenes[0].model, rel=1e-3)
    assert (whole.parts, parted.parts) == (None, LEAST)
    assert whole.file_name.removesuffix(".json") + f"-parts{LEAST}.json" == parted.file_name
    assert Protocol.from_evaluation(parted).title.endswith(f"{2 * LEAST} points in parts of {LEAST}")
    with pytest.raises(ShapeError, match=f"--parts {LEAST - 1}: the network needs at least {LEAST}"):
        evaluate_checkpoint(path, dataset, parts=LEAST - 1, **how)
