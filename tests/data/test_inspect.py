# SPDX-License-Identifier: MIT
"""`bpfn data`: what a dataset holds, all its damage in one list, and a list that a subset leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scene_folders import write_flyingthings3d, write_log, write_occluded, write_scene

from bpfn_cli.cli.main import run
from bpfn_cli.data.inspect import QUANTILES, check_dataset, describe_scene, disk_bytes
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import plan_subset, read_leave_out
from bpfn_cli.errors import DataError, UsageError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_flyingthings3d(tmp_path / "set", train=4, val=2)


def test_counts_and_quantiles_by_hand(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for index, depth in enumerate((10, 20)):
        points = np.array([[0, 0, -depth]] * (index + 1), np.float32)
        write_scene(root / "train" / f"{index:07d}", points, points - np.array([0, 0, index]))
    (split,) = check_dataset(root).splits
    assert (split.split, split.scenes, split.damaged, split.valid_share) == ("train", 2, 0, 1.0)
    assert split.points1 == split.points2 == (1.0, 1.1, 1.5, 1.9, 2.0)
    assert split.depth_m == (10.0, 12.0, 20.0, 20.0, 20.0)
    assert split.flow_length_m == (0.0, 0.2, 1.0, 1.0, 1.0)
    assert len(QUANTILES) == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_all_damage_is_in_one_list(dataset: Path, processes: int) -> None:
    (dataset / "train" / "0000001" / "pc1.npy").write_bytes(b"no")
    (dataset / "train" / "0000003" / "pc2.npy").unlink()
    np.save(dataset / "val" / "0000000" / "pc1.npy", np.full((20, 3), np.nan, np.float32))
    found = check_dataset(dataset, processes=processes)
    assert [(one.split, one.scene) for one in found.damage] == [
        ("train", "0000001"),
        ("train", "0000003"),
        ("val", "0000000"),
    ]
    assert [(split.scenes, split.damaged) for split in found.splits] == [(4, 2), (2, 1)]
    assert found.disk_bytes == sum(path.stat().st_size for path in dataset.rglob("*.npy"))


def test_a_dataset_with_nothing_whole_is_described_too(tmp_path: Path) -> None:
    root = write_flyingthings3d(tmp_path / "set", train=1, val=0)
    (root / "train" / "0000000" / "pc1.npy").write_bytes(b"")
    (split,) = check_dataset(root).splits
    assert (split.scenes, split.damaged, split.depth_m) == (1, 1, ())


def test_every_kind_can_be_checked_and_shown(dataset: Path, tmp_path: Path) -> None:
    make_subset(dataset, tmp_path / "packed", SubsetOptions(1.0, packed=True))
    things = write_occluded(tmp_path / "things")
    (tmp_path / "logs").mkdir()
    write_log(tmp_path / "logs" / "log.h5")
    kitti = tmp_path / "kitti_processed"
    write_scene(kitti / "000002", [[0, 1, 10]], [[0, 1, 11]])
    for place, kind, scene in (
        (dataset, "flyingthings3d", "train/0000002"),
        (tmp_path / "packed", "flyingthings3d", "train/0000002"),
        (things, "flyingthings3d_occluded", "TRAIN_A_0000_left_0006-0"),
        (things, "flyingthings3d_occluded", "TRAIN_A_0000_left_0006-0.npz"),
        (tmp_path / "logs", "lidar_logs", "log/315966265659927216"),
        (kitti, "kitti", "000002"),
    ):
        found = check_dataset(place)
        assert (found.kind, found.damage) == (kind, ())
        assert describe_scene(place / scene)["kind"] == kind
    assert check_dataset(things).splits[0].valid_share == pytest.approx(8 / 12, abs=1e-4)
    assert check_dataset(tmp_path / "packed").splits[0].depth_m == check_dataset(dataset).splits[0].depth_m


def test_a_scene_by_hand(tmp_path: Path) -> None:
    write_scene(tmp_path / "set/train/0000000", [[1, 2, -10], [3, 2, -20]], [[1, 2, -10], [3, 2, -21]])
    found = describe_scene(tmp_path / "set/train/0000000")
    assert (found["points1"], found["known_flow"], found["split"]) == (2, 2, "train")
    assert (found["pc1_min_m"], found["pc1_max_m"]) == ([-3, 2, 10], [-1, 2, 20])
    assert (found["mean_flow_m"], found["flow_length_m"][-1]) == ([0, 0, 0.5], 1.0)


def test_figures_of_the_flow_are_of_the_points_where_it_is_known(tmp_path: Path) -> None:
    valid = np.arange(12) < 6
    flow = np.where(valid[:, None], [0.0, 0.0, 0.5], [9.0, 9.0, 9.0])
    write_occluded(tmp_path / "set", flow=flow.astype(np.float32), valid_mask1=valid)
    found = describe_scene(tmp_path / "set" / "TRAIN_A_0000_left_0006-0")
    assert (found["known_flow"], found["mean_flow_m"], found["flow_length_m"][-1]) == (6, [0, 0, 0.5], 0.5)


def test_no_such_scene(dataset: Path) -> None:
    with pytest.raises(UsageError, match="no such scene; give DATASET/train/NAME"):
        describe_scene(dataset / "train" / "nothing")


def test_links_are_not_followed_for_the_size(dataset: Path, tmp_path: Path) -> None:
    before = disk_bytes(dataset)
    (dataset / "loop").symlink_to(dataset)
    assert disk_bytes(dataset) == before


def test_command_lists_damage_and_the_subset_leaves_it_out(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", "check", "set", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    for expected in ("flyingthings3d", "points in cloud 1", "flow length [m]", "train", "val"):
        assert expected in said
    (dataset / "train" / "0000001" / "pc1.npy").write_bytes(b"no")
    assert run(["data", "check", "set", "--processes", "1", "--json", "--fix-list", "bad.txt"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["damage"][0]["scene"] == "0000001"
    assert captured.err.splitlines()[-1] == (
        "bpfn: set: 1 scenes are damaged; make them again, or leave them out "
        "(bpfn subset --source set --leave-out bad.txt)"
    )
    assert (tmp_path / "bad.txt").read_text() == "train/0000001\n"
    assert run(["data", "check", "set", "--fix-list", "bad.txt"]) == 5
    words = ["subset", "--source", "set", "--out", "sub", "--fraction", "1", "--leave-out", "bad.txt"]
    assert run(words) == 0
    assert not (tmp_path / "sub" / "train" / "0000001").exists()
    assert run(["data", "check", "sub", "--processes", "1"]) == 0
    assert run(["subset", "--verify", "--out", "sub"]) == 0
    assert run(["data", "show", "set/train/0000000"]) == 0
    assert "flow_length_m:" in capsys.readouterr().out


def test_leave_out_names_scenes_that_are_there(dataset: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("# comment\ntrain/0000000\n\nval/0000001\n")
    names = read_leave_out(listed)
    plan = plan_subset(dataset, SubsetOptions(1.0, leave_out=names))
    assert plan.available == {"train": ("0000001", "0000002", "0000003"), "val": ("0000000",)}
    with pytest.raises(DataError, match="no scene train/none to leave out"):
        plan_subset(dataset, SubsetOptions(1.0, leave_out=("train/none",)))
    listed.write_text("../../etc\n")
    with pytest.raises(DataError, match="not of the form"):
        read_leave_out(listed)
