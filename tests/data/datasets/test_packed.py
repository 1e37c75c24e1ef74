# SPDX-License-Identifier: MIT
"""Packed splits: the same points, in windows that are fair samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scene_folders import contents, write_flyingthings3d, write_scene

from bpfn_cli.data.datasets import FORMATS, find_dataset, open_dataset
from bpfn_cli.data.datasets.base import SceneDataset
from bpfn_cli.data.datasets.packed import PackedScenes, open_packed, write_packed
from bpfn_cli.data.loader import training_batches
from bpfn_cli.data.subset.make import make_subset, verify_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.errors import BpfnError, DataError, UsageError

ALL = SubsetOptions(fraction=1.0, packed=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_flyingthings3d(tmp_path / "source", train=5, val=2, points=50)


def packed(source: Path, options: SubsetOptions = ALL, split: str = "train", **words: object) -> PackedScenes:
    out = source.parent / "packed"
    make_subset(source, out, options, **words)  # type: ignore[arg-type]
    dataset = open_dataset(out, split)
    assert isinstance(dataset, PackedScenes)
    return dataset


def rows(*arrays: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.concatenate(arrays, axis=1).tolist()))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_holds_the_points_of_its_source(source: Path, split: str) -> None:
    dataset, whole = packed(source, split=split), open_dataset(source, split)
    assert (dataset.kind, dataset.split, dataset.names) == (whole.kind, split, whole.names)
    for index in range(len(whole)):
        found, expected = dataset.load(index), whole.load(index)
        assert rows(found.pc1, found.flow) == rows(expected.pc1, expected.flow)
        assert not np.array_equal(found.pc1, expected.pc1), "not shuffled"
        np.testing.assert_allclose(found.pc2, found.pc1 + found.flow, rtol=0, atol=0)
        assert (found.name, found.camera) == (expected.name, expected.camera)


def test_most_points_are_a_random_part(source: Path) -> None:
    dataset = packed(source, SubsetOptions(1.0, packed=True, max_points=20))
    whole = open_dataset(source, "train")
    for index in range(5):
        found = set(rows(dataset.load(index).pc1))
        assert len(found) == 20
        assert found < set(rows(whole.load(index).pc1))
    first_rows = [set(rows(whole.load(index).pc1[:20])) for index in range(5)]
    assert all(set(rows(dataset.load(index).pc1)) != first for index, first in enumerate(first_rows))


def test_bytes_are_the_same_every_time_and_for_any_number_of_threads(source: Path, tmp_path: Path) -> None:
    made = []
    for name, processes in (("a", 1), ("b", 4)):
        make_subset(source, tmp_path / name, ALL, processes=processes)
        made.append(contents(tmp_path / name))
    assert made[0] == made[1]
    assert set(made[0]) == {"subset.json", "train.packed", "val.packed"}


def test_another_seed_shuffles_otherwise(source: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_subset(source, tmp_path / str(seed), SubsetOptions(1.0, packed=True, seed=seed))
    first, second = (open_dataset(tmp_path / seed, "train").load(0).pc1 for seed in ("0", "1"))
    assert not np.array_equal(first, second)
    assert rows(first) == rows(second)


def test_a_sample_is_two_windows_round_the_end(source: Path) -> None:
    dataset = packed(source)
    whole = dataset.load(0)
    pc1 = [tuple(point) for point in whole.pc1.tolist()]
    pc2 = [tuple(point) for point in whole.pc2.tolist()]
    starts = set()
    for seed in range(60):
        drawn = dataset.sample(0, 30, np.random.default_rng(seed))
        first = pc1.index(tuple(drawn.pc1[0].tolist()))
        second = pc2.index(tuple(drawn.pc2[0].tolist()))
        starts.add((first, second))
        order1, order2 = (np.arange(start, start + 30) % 50 for start in (first, second))
        np.testing.assert_array_equal(drawn.pc1, whole.pc1[order1])
        np.testing.assert_array_equal(drawn.flow, whole.flow[order1])
        np.testing.assert_array_equal(drawn.pc2, whole.pc2[order2])
    assert len(starts) > 50
    assert max(first for first, _ in starts) > 40, "no window goes round the end"


def test_every_point_is_drawn_equally_often(source: Path) -> None:
    dataset = packed(source)
    counts = dict.fromkeys(map(tuple, dataset.load(1).pc1.tolist()), 0)
    for seed in range(1000):
        for point in dataset.sample(1, 10, np.random.default_rng(seed)).pc1.tolist():
            counts[tuple(point)] += 1
    assert 140 < min(counts.values()) <= max(counts.values()) < 260  # 200 each on average


def test_more_points_than_there_are_come_again(source: Path) -> None:
    drawn = packed(source).sample(0, 80, np.random.default_rng(0))
    assert len(drawn.pc1) == len(drawn.pc2) == 80


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(source: Path, workers: int) -> None:
    dataset = packed(source)

    def epoch(number: int) -> list[list[float]]:
        batches = training_batches(
            dataset, range(5), points=16, batch_size=2, seed=0, epoch=0, augmentation=None, workers=number
        )
        return [batch.pc1.flatten().tolist() for batch in batches]

    assert epoch(0) == epoch(workers)


def test_identity_differs_from_that_of_other_points(source: Path) -> None:
    whole = packed(source).identity()
    assert find_dataset(source.parent / "packed").identity.train_scenes == 5
    assert whole != packed(source, SubsetOptions(1.0, packed=True, max_points=9), force=True).identity()


def test_a_missing_split_is_seen_before_a_training_begins(source: Path) -> None:
    packed(source)
    val = source.parent / "packed" / "val.packed"
    content = val.read_bytes()
    val.write_bytes(content[:-24])
    with pytest.raises(DataError, match=r"val\.packed: \d+ bytes found"):
        assert find_dataset(source.parent / "packed").identity
    val.unlink()
    with pytest.raises(DataError, match=r"val\.packed: no such file"):
        assert find_dataset(source.parent / "packed").identity


def test_repeating_does_nothing_and_verify_finds_a_changed_byte(source: Path) -> None:
    packed(source)
    out = source.parent / "packed"
    before = (out / "train.packed").stat().st_mtime_ns
    assert make_subset(source, out, ALL).already_complete
    assert (out / "train.packed").stat().st_mtime_ns == before
    verify_subset(out)
    content = bytearray((out / "train.packed").read_bytes())
    content[-200] ^= 1
    (out / "train.packed").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.packed changed"):
        verify_subset(out)
    assert not make_subset(source, out, ALL).already_complete
    verify_subset(out)


def test_packed_file_is_verified_without_reading_it_whole(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be larger than what `read_file` accepts, and than the memory."""

    def refuse(path: Path) -> None:
        raise AssertionError(path)

    packed(source)
    monkeypatch.setattr("bpfn_cli.data.subset.transfer.read_file", refuse)
    verify_subset(source.parent / "packed")


def test_damaged_scenes_are_all_named_and_nothing_is_left(source: Path) -> None:
    for name in ("train/0000001", "train/0000003", "val/0000001"):
        (source / name / "pc1.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"3 of 7 scenes are damaged.*train/0000001.*train/0000003.*val/0000001"):
        packed(source)
    assert set(contents(source.parent / "packed")) == {"subset.json.partial"}
    with pytest.raises(DataError, match="unfinished"):
        open_dataset(source.parent / "packed", "train")


def test_refusals(source: Path) -> None:
    with pytest.raises(UsageError, match="max_points"):
        SubsetOptions(max_points=5)
    with pytest.raises(UsageError, match="always copied"):
        SubsetOptions(packed=True, link="symlink")
    packed(source)
    with pytest.raises(DataError, match="is packed"):
        make_subset(source.parent / "packed", source.parent / "again", ALL)
    (source.parent / "packed" / "subset.json").unlink()
    with pytest.raises(DataError, match=r"packed scenes without their subset\.json"):
        open_dataset(source.parent / "packed", "train")


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_packed_file_gives_scenes_or_one_line_errors(tmp_path: Path, count: int) -> None:
    path = tmp_path / "train.packed"
    write_packed(path, ["a", "b"], [np.ones((3, 6), np.float32), np.ones((5, 6), np.float32)])
    whole = path.read_bytes()
    for seed in range(count):
        content, generator = bytearray(whole), np.random.default_rng(seed)
        match seed % 3:
            case 0:
                content = content[: generator.integers(len(content))]
            case 1:
                content += generator.bytes(int(generator.integers(1, 50)))
            case _:
                for _ in range(4):
                    content[generator.integers(len(content))] = generator.integers(256)
        path.write_bytes(content)
        try:
            dataset = open_packed(path, SceneDataset(FORMATS["flyingthings3d"], tmp_path, "train", ()))
            for index in range(len(dataset)):
                dataset.load(index)
                dataset.sample(index, 2, generator)
        except BpfnError as error:
            assert "\n" not in str(error)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.packed"
    write_packed(path, ["a"], [np.full((3, 6), np.nan, np.float32)])
    dataset = open_packed(path, SceneDataset(FORMATS["flyingthings3d"], tmp_path, "train", ()))
    with pytest.raises(DataError, match="NaN"):
        dataset.load(0)


def test_header_is_json_for_people(source: Path) -> None:
    packed(source)
    content = (source.parent / "packed" / "train.packed").read_bytes()
    header = json.loads(content[16 : 16 + int.from_bytes(content[8:16], "little")])
    assert header["columns"] == ["x", "y", "z", "flow x", "flow y", "flow z"]
    assert header["scenes"] == [f"{index:07d}" for index in range(5)]


def test_points_beyond_the_depth_cut_are_left_out(tmp_path: Path) -> None:
    source = write_flyingthings3d(tmp_path / "source", train=1, val=0)
    write_scene(source / "train" / "0000009", [[0, 0, -10], [0, 0, -40]], [[0, 0, -10], [0, 0, -40]])
    assert [len(packed(source).load(index).pc1) for index in range(2)] == [20, 1]
