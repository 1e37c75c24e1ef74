# SPDX-License-Identifier: MIT
"""Batches are a function of (seed, epoch, scene name), and the flow follows every change of the clouds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_folders import write_flyingthings3d

from bpfn_cli.data.augment import AugmentSettings, augment, crop, sample_points
from bpfn_cli.data.datasets import SceneDataset, open_dataset
from bpfn_cli.data.loader import epoch_order, evaluation_batches, training_batches
from bpfn_cli.errors import DataError
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA, FlowBatch, Scene

STILL = AugmentSettings(scale=0, rotation_degrees=0, shift_m=0, shift2_m=0, jitter_m=0)


@dataclass(frozen=True)
class Scenes:
    names: tuple[str, ...] = ("a", "b", "c", "d", "e")
    kind: str = "test"
    root: Path = Path()
    split: str = "train"

    sample = SceneDataset.sample

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Scene:
        generator = np.random.default_rng(index)
        pc1 = generator.normal(0, 5, (40, 3)).astype(np.float32)
        flow = generator.normal(0, 1, (40, 3)).astype(np.float32)
        return Scene(self.names[index], pc1, pc1 + flow, flow, FLYINGTHINGS3D_CAMERA)


@dataclass(frozen=True)
class Unlabeled(Scenes):
    def load(self, index: int) -> Scene:
        return replace(super().load(index), flow=None)


def epoch(
    workers: int = 0, seed: int = 0, number: int = 0, size: int = 2, scenes: Scenes = Scenes()
) -> list[FlowBatch]:
    options = AugmentSettings(jitter_m=0.01)
    batches = training_batches(
        scenes, range(5), points=16, batch_size=size, seed=seed, epoch=number, augmentation=options, workers=workers
    )
    return list(batches)


def test_scenes_without_labels_are_drawn_and_augmented_like_those_with_labels() -> None:
    for labeled, unlabeled in zip(epoch(), epoch(scenes=Unlabeled()), strict=True):
        assert labeled.flow is not None and unlabeled.flow is None
        assert torch.equal(labeled.pc1, unlabeled.pc1) and torch.equal(labeled.pc2, unlabeled.pc2)


def test_crop_of_a_scene_without_labels_takes_one_region_of_both_clouds() -> None:
    scene = replace(Scenes().load(0), flow=None)
    found = crop(replace(scene, pc2=scene.pc1), 9, np.random.default_rng(7))
    assert found.flow is None
    np.testing.assert_array_equal(found.pc1, found.pc2)


def test_crop_takes_the_nearest_points_and_follows_the_motion() -> None:
    scene = Scenes().load(0)
    moved = replace(scene, pc2=scene.pc1 + np.float32([100, 0, 0]), flow=np.tile(np.float32([100, 0, 0]), (40, 1)))
    center = scene.pc1[np.random.default_rng(7).integers(40)]
    found = crop(moved, 9, np.random.default_rng(7))
    distances = np.sort(np.linalg.norm(scene.pc1 - center, axis=1))
    np.testing.assert_allclose(np.sort(np.linalg.norm(found.pc1 - center, axis=1)), distances[:9], rtol=1e-6)
    np.testing.assert_array_equal(found.pc1 + found.flow, found.pc2)


def test_crop_does_not_use_the_flow_of_hidden_points() -> None:
    scene = Scenes().load(0)
    flow, valid = np.full((40, 3), 1e6, np.float32), np.zeros(40, bool)
    flow[:20], valid[:20] = 0, True
    found = crop(replace(scene, pc2=scene.pc1, flow=flow, valid=valid), 10, np.random.default_rng(1))
    np.testing.assert_array_equal(found.pc1, found.pc2)
    assert found.valid is not None
    assert not found.valid.all()


def test_cropped_batches_hold_denser_clouds_of_the_same_size() -> None:
    def spread(largest: float) -> float:
        options = replace(STILL, crop=largest)
        batches = training_batches(
            Scenes(), range(5), points=8, batch_size=5, seed=0, epoch=0, augmentation=options, workers=0
        )
        (batch,) = batches
        assert batch.pc1.shape == batch.pc2.shape == (5, 8, 3)
        return float(batch.pc1.std(dim=1).mean())

    assert spread(5) < 0.8 * spread(1)


def test_crop_of_a_small_scene_repeats_no_point() -> None:
    batches = training_batches(
        Scenes(), range(5), points=16, batch_size=5, seed=0, epoch=0, augmentation=replace(STILL, crop=64), workers=0
    )
    (batch,) = batches  # of scenes with 40 points, so most draws ask for more than there are
    for cloud in (*batch.pc1, *batch.pc2):
        assert len(cloud.unique(dim=0)) == 16


def by_name(batches: list[FlowBatch]) -> dict[str, torch.Tensor]:
    return {
        name: torch.cat([batch.pc1[i], batch.pc2[i], batch.flow[i]])
        for batch in batches
        for i, name in enumerate(batch.names)
    }


def test_batches_do_not_depend_on_workers() -> None:
    expected = epoch()
    assert [len(batch.names) for batch in expected] == [2, 2, 1]
    for workers in (1, 2):
        for found, batch in zip(epoch(workers), expected, strict=True):
            assert found.names == batch.names
            assert found.cameras == batch.cameras
            assert all(torch.equal(getattr(found, key), getattr(batch, key)) for key in ("pc1", "pc2", "flow"))


def test_damaged_scene_is_the_same_one_line_error_from_a_worker(tmp_path: Path) -> None:
    root = write_flyingthings3d(tmp_path / "things\x1b", train=5)
    victim = root / "train" / "0000003" / "pc2.npy"
    victim.write_bytes(victim.read_bytes()[:-7])
    said = []
    for workers in (0, 1):
        batches = training_batches(
            open_dataset(root, "train"),
            range(5),
            points=16,
            batch_size=2,
            seed=0,
            epoch=0,
            augmentation=STILL,
            workers=workers,
        )
        names: list[str] = []
        with pytest.raises(DataError) as error:
            for batch in batches:
                names.extend(batch.names)
        said.append((type(error.value), str(error.value), names))
    assert said[0] == said[1]
    kind, message, before = said[0]
    assert kind is DataError
    assert message.startswith(f"{tmp_path}/things\\x1b/train/0000003/pc2.npy: truncated")
    assert message.isprintable()
    assert len(message) < 300  # no traceback
    order = epoch_order(5, 0, 0)
    good = order.index(3) // 2 * 2  # batches before the one with the scene
    assert before == [f"{index:07d}" for index in order[:good]]


def test_samples_are_keyed_by_seed_epoch_and_name_alone() -> None:
    expected = by_name(epoch())
    regrouped = by_name(epoch(size=5))
    assert all(torch.equal(expected[name], regrouped[name]) for name in "abcde")
    for other in (by_name(epoch(seed=1)), by_name(epoch(number=1))):
        assert all(not torch.equal(expected[name], other[name]) for name in "abcde")


def test_loader_leaves_the_main_generators_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(2), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    epoch()
    assert torch.equal(torch.rand(2), expected[0])
    assert np.random.rand() == expected[1]


def test_evaluation_is_in_order_not_augmented_and_the_same_twice() -> None:
    first, second = (list(evaluation_batches(Scenes(), [3, 1], points=16, batch_size=1, seed=0)) for _ in range(2))
    assert [batch.names for batch in first] == [("d",), ("b",)]
    assert all(torch.equal(a.pc1, b.pc1) for a, b in zip(first, second, strict=True))
    rows = {tuple(row) for row in Scenes().load(3).pc1.tolist()}
    assert {tuple(row) for row in first[0].pc1[0].tolist()} <= rows


def test_epoch_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(50, 0, 0), epoch_order(50, 0, 1), epoch_order(50, 1, 0)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(50, 0, 1) == orders[1]


def test_keys_are_not_confused() -> None:
    assert keyed_generator("a", 12).random() != keyed_generator("a1", 2).random()
    assert keyed_generator("a", 12).random() == keyed_generator("a", 12).random()


def test_sampled_flow_belongs_to_its_points() -> None:
    scene = Scenes().load(0)
    drawn = sample_points(scene, 16, np.random.default_rng(0))
    pc1, flow = drawn.pc1, drawn.flow
    flows = {tuple(p): tuple(f) for p, f in zip(scene.pc1.tolist(), scene.flow.tolist(), strict=True)}
    assert [flows[tuple(p)] for p in pc1.tolist()] == [tuple(f) for f in flow.tolist()]
    assert len({tuple(p) for p in pc1.tolist()}) == 16
    assert len(sample_points(scene, 100, np.random.default_rng(0)).pc1) == 100


def test_augmentation_by_hand() -> None:
    sample = tuple(np.array([[1.0, 2, 3]], np.float32) + d for d in (0, 1, 0))
    assert all(
        np.array_equal(a, b) for a, b in zip(augment(sample, STILL, np.random.default_rng(0)), sample, strict=True)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_flow_follows_the_clouds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pc1, flow = generator.normal(0, 5, (2, 30, 3))
    start, target, moved = augment((pc1, pc1 + flow, flow), AugmentSettings(), np.random.default_rng(seed))
    # The second cloud is exactly where the first one flows to; so it must stay.
    np.testing.assert_allclose(start + moved, target, atol=1e-5)
    # One affine map for the first cloud, which turns about y alone.
    ones = np.hstack([pc1, np.ones((30, 1))])
    matrix, *_ = np.linalg.lstsq(ones, start, rcond=None)
    np.testing.assert_allclose(ones @ matrix, start, atol=1e-5)
    np.testing.assert_allclose(matrix[1, [0, 2]], 0, atol=1e-5)
    np.testing.assert_allclose(matrix[[0, 2], 1], 0, atol=1e-5)
    assert 0.95 <= matrix[1, 1] <= 1.05
    assert np.abs(matrix[3]).max() <= 1.0
    # The flow of a standing point is the shift of the second cloud, the same everywhere.
    _, _, standing = augment((pc1, pc1, 0 * flow), AugmentSettings(), np.random.default_rng(seed))
    assert np.ptp(standing, axis=0).max() < 1e-5
    assert 0 < np.abs(standing).max() <= 0.3 + 1e-5


def test_jitter_moves_points_and_not_the_flow() -> None:
    cloud = np.zeros((2000, 3), np.float32)
    options = AugmentSettings(scale=0, rotation_degrees=0, shift_m=0, shift2_m=0, jitter_m=0.1)
    start, target, flow = augment((cloud, cloud, cloud), options, np.random.default_rng(0))
    assert not flow.any()
    assert start.std() == pytest.approx(0.1, rel=0.05)
    assert target.std() == pytest.approx(0.1, rel=0.05)
    assert not np.allclose(start, target)
