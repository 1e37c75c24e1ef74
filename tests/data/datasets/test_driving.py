# SPDX-License-Identifier: MIT
"""Live driving scenes: new ones in every epoch, the same ones for the same seeds, epoch and name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bpfn_cli.data.augment import AugmentSettings
from bpfn_cli.data.datasets import find_dataset, is_synthetic_kind, open_dataset
from bpfn_cli.data.loader import evaluation_batches, training_batches
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.synthetic.driving.live import LIVE_RECORD, read_options, write_live
from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
from bpfn_cli.data.synthetic.render import write_synthetic
from bpfn_cli.errors import DataError, UsageError
from bpfn_cli.structures import FlowBatch

OPTIONS = DrivingOptions(train=5, val=2, seed=1, points=600)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    folder = tmp_path / "live"
    write_live(folder, OPTIONS)
    return folder


def epoch(folder: Path, number: int = 0, *, workers: int = 0, seed: int = 0, start: int = 0) -> list[FlowBatch]:
    batches = training_batches(
        open_dataset(folder, "train"),
        range(5),
        points=256,
        batch_size=2,
        seed=seed,
        epoch=number,
        augmentation=AugmentSettings(),
        workers=workers,
        start=start,
    )
    return list(batches)


def contents(batches: list[FlowBatch]) -> dict[str, bytes]:
    return {
        name: b"".join(part[i].numpy().tobytes() for part in (batch.pc1, batch.pc2, batch.flow))
        for batch in batches
        for i, name in enumerate(batch.names)
    }


def test_folder_is_found_and_opened(live: Path) -> None:
    dataset = find_dataset(live)
    assert dataset.format.name == "driving" and is_synthetic_kind("driving")
    assert dataset.identity.train_scenes == 5 and dataset.identity.val_scenes == 2
    train, test = dataset.open("train"), dataset.open("test")
    assert train.label == "5 training scenes an epoch, rendered anew"
    assert len(train) == 5 and test.names == ("0000000", "0000001")
    scene = test.load(0)
    assert scene.pc1.shape == scene.pc2.shape and len(scene.pc1) <= 600
    np.testing.assert_array_equal(scene.flow, scene.pc2 - scene.pc1)


def test_every_epoch_has_new_scenes(live: Path) -> None:
    first, second = contents(epoch(live, 0)), contents(epoch(live, 1))
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    rotation_free = [open_dataset(live, "train").sample(0, 256, np.random.default_rng(i)).pc1 for i in (0, 1)]
    assert abs(rotation_free[0].mean(axis=0) - rotation_free[1].mean(axis=0)).max() > 0.1


def test_epoch_is_a_function_of_seed_and_number(live: Path, tmp_path: Path) -> None:
    expected = contents(epoch(live, 3))
    assert contents(epoch(live, 3)) == expected
    assert contents(epoch(live, 3, seed=1)) != expected
    other = tmp_path / "other"
    write_live(other, replace(OPTIONS, seed=2))
    assert contents(epoch(other, 3)) != expected


def test_workers_do_not_change_the_scenes(live: Path) -> None:
    assert contents(epoch(live, workers=2)) == contents(epoch(live))


def test_epoch_resumed_in_its_middle_has_the_same_batches(live: Path) -> None:
    assert contents(epoch(live, 2, start=1)) == contents(epoch(live, 2)[1:])


def test_validation_scenes_are_fixed(live: Path) -> None:
    test = open_dataset(live, "test")
    first, second = (list(evaluation_batches(test, range(2), points=256, batch_size=1, seed=0)) for _ in range(2))
    assert contents(first) == contents(second)
    held_out = open_dataset(live, "train")
    first, second = (list(evaluation_batches(held_out, [1, 3], points=256, batch_size=1, seed=0)) for _ in range(2))
    assert contents(first) == contents(second)


def test_written_scenes_equal_live_ones(live: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "disk", OPTIONS, processes=1)
    live_one, disk_one = (open_dataset(folder, "val").load(1) for folder in (live, tmp_path / "disk"))
    np.testing.assert_array_equal(live_one.pc1, disk_one.pc1)
    np.testing.assert_array_equal(live_one.flow, disk_one.flow)


def test_written_scenes_and_their_subsets_have_the_camera_of_live_ones(live: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "written", OPTIONS, processes=1)
    camera = open_dataset(live, "test").load(0).camera
    for name, packed in (("folders", False), ("packed", True)):
        make_subset(tmp_path / "written", tmp_path / name, SubsetOptions(0.4, packed=packed))
    for name in ("written", "folders", "packed"):
        dataset = open_dataset(tmp_path / name, "test")
        assert (dataset.kind, dataset.load(0).camera) == ("synthetic_driving", camera)


def test_training_scenes_come_without_labels_on_request(tmp_path: Path) -> None:
    write_live(tmp_path, replace(OPTIONS, hidden="vanish"))
    scenes = open_dataset(tmp_path, "train").without_labels()
    for scene in (scenes.load(0), scenes.sample(0, 256, np.random.default_rng(0))):
        assert (scene.flow, scene.valid) == (None, None)


def test_vanishing_points_are_marked(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    write_live(folder, replace(OPTIONS, hidden="vanish"))
    scene = open_dataset(folder, "val").load(0)
    assert scene.valid is not None and len(scene.pc2) == scene.valid.sum() <= len(scene.pc1) == len(scene.flow)
    with pytest.raises(UsageError, match="--live"):
        write_synthetic(tmp_path / "disk", replace(OPTIONS, hidden="vanish"), processes=1)


def test_identity_is_that_of_the_record(live: Path, tmp_path: Path) -> None:
    expected = find_dataset(live).identity.sha256
    for number, changed in enumerate(({"seed": 2}, {"ground": True}, {"train": 6})):
        write_live(tmp_path / f"{number}", replace(OPTIONS, **changed))
        assert find_dataset(tmp_path / f"{number}").identity.sha256 != expected
    write_live(tmp_path / "same", OPTIONS)
    assert find_dataset(tmp_path / "same").identity.sha256 == expected


def test_record_is_written_once(live: Path) -> None:
    before = (live / LIVE_RECORD).stat().st_mtime_ns
    write_live(live, OPTIONS)
    assert (live / LIVE_RECORD).stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="seed 9, not 1"):
        write_live(live, replace(OPTIONS, seed=9))
    write_live(live, replace(OPTIONS, seed=9), force=True)
    assert read_options(live).seed == 9
    (live / "notes.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        write_live(live, OPTIONS, force=True)


@pytest.mark.parametrize("change", [{"format": 99}, {"points": 3}, {"hidden": "gone"}])
def test_damaged_record_is_refused(live: Path, change: dict[str, object]) -> None:
    record = json.loads((live / LIVE_RECORD).read_text())
    (live / LIVE_RECORD).write_text(json.dumps(record | change))
    with pytest.raises(DataError, match="synth --live --force"):
        find_dataset(live).open("train")
