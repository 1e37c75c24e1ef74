# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from scene_folders import write_flyingthings3d, write_scene

from bpfn_cli.data.datasets import describe, find_dataset, open_dataset
from bpfn_cli.data.subset.make import SubsetOptions, make_subset
from bpfn_cli.errors import DataError, DiskError, UsageError
from bpfn_cli.structures import FLYINGTHINGS3D_CAMERA

REAL_DATA = os.environ.get("BPFN_REAL_DATA")


@pytest.fixture
def things(tmp_path: Path) -> Path:
    return write_flyingthings3d(tmp_path / "things")


def kitti(root: Path, *scenes: int) -> Path:
    for scene in scenes:
        write_scene(root / f"{scene:06d}", [[1, 2, 3], [4, 5, 6]], [[1, 2, 4], [4, 5, 6]])
    return root


# --- FlyingThings3D -------------------------------------------------------------------------------


def test_flyingthings3d_negates_x_and_z(tmp_path):
    write_scene(tmp_path / "train" / "0000000", [[1, 2, -3]], [[1.5, 2.25, -4]])
    scene = open_dataset(tmp_path, "train").load(0)
    assert scene.name == "0000000"
    assert scene.pc1.tolist() == [[-1, 2, 3]]
    assert scene.pc2.tolist() == [[-1.5, 2.25, 4]]
    assert scene.flow.tolist() == [[-0.5, 0.25, 1]]
    assert scene.camera == FLYINGTHINGS3D_CAMERA
    assert scene.valid is None
    assert {array.dtype for array in (scene.pc1, scene.pc2, scene.flow)} == {np.dtype(np.float32)}


def test_flyingthings3d_cuts_at_35_m_in_both_clouds(tmp_path):
    pc1 = [[0, 0, -34.9], [1, 0, -35], [2, 0, -10], [3, 0, -10]]
    pc2 = [[0, 0, -34.9], [1, 0, -10], [2, 0, -35.1], [3, 0, -11]]
    write_scene(tmp_path / "train" / "0000000", pc1, pc2)
    scene = open_dataset(tmp_path, "train").load(0)
    assert scene.pc1[:, 0].tolist() == [0, -3]
    assert scene.pc2[:, 2].tolist() == pytest.approx([34.9, 11])


def test_flyingthings3d_keeps_what_lies_below_kittis_ground(tmp_path):
    write_scene(tmp_path / "train" / "0000000", [[0, -2, -3]], [[0, -2, -3]])
    assert len(open_dataset(tmp_path, "train").load(0).pc1) == 1


def test_flyingthings3d_test_split_is_the_val_folder(things):
    test, val = open_dataset(things, "test"), open_dataset(things, "val")
    assert (test.split, val.split) == ("test", "val")
    assert test.names == val.names == ("0000000", "0000001")
    assert np.array_equal(test.load(1).pc1, val.load(1).pc1)
    assert not np.array_equal(test.load(0).pc1, open_dataset(things, "train").load(0).pc1)


def test_scenes_are_sorted_whatever_the_file_system_lists_first(tmp_path, monkeypatch):
    write_flyingthings3d(tmp_path, train=["b", "a", "0000010", "0000009"], val=0)
    expected = ("0000009", "0000010", "a", "b")
    assert open_dataset(tmp_path, "train").names == expected
    listed = os.scandir
    for backwards in (False, True):
        monkeypatch.setattr(
            os,
            "scandir",
            lambda path, backwards=backwards: sorted(listed(path), key=lambda entry: entry.name, reverse=backwards),
        )
        assert open_dataset(tmp_path, "train").names == expected


def test_synthetic_scenes_are_called_synthetic(things):
    (things / "synthetic.json").write_text('{"kind": "synthetic"}')
    assert open_dataset(things, "train").kind == "synthetic"


def test_datasets_travel_to_other_processes(things):
    dataset = open_dataset(things, "train")
    assert pickle.loads(pickle.dumps(dataset)) == dataset


# --- KITTI ----------------------------------------------------------------------------------------


def test_kitti_drops_ground_then_far_points_and_flips_nothing(tmp_path):
    pc1 = [[1, -1.5, 5], [2, -1.5, 5], [3, -1.3, 5], [4, 0, 34.9], [5, 0, 35], [6, 0, 5], [7, -1.4, 5]]
    pc2 = [[1, -1.5, 5], [2, -1.3, 5], [3, -1.5, 5], [4, 0, 34.9], [5, 0, 5], [6, 0, 36], [7, -1.4, 5]]
    write_scene(tmp_path / "000002", pc1, np.add(pc2, [0.5, 0, 0]))
    scene = open_dataset(tmp_path, "test").load(0)
    # row 0 is ground in both; rows 4 and 5 are far in one; row 6 lies at the limit, not below it
    assert scene.pc1[:, 0].tolist() == [2, 3, 4, 7]
    assert scene.flow.tolist() == [
        [0.5, pytest.approx(0.2), 0],
        [0.5, pytest.approx(-0.2), 0],
        [0.5, 0, 0],
        [0.5, 0, 0],
    ]
    assert scene.pc1[0].tolist() == [2, -1.5, 5]


def test_kitti_scene_has_the_camera_of_its_recording(tmp_path):
    kitti(tmp_path, 2, 199)
    cameras = [open_dataset(tmp_path, "all").load(index).camera for index in (0, 1)]
    assert cameras[0].focal == -721.5377
    assert cameras[0].cx == 609.5593
    assert cameras[0] != cameras[1]


def test_kitti_test_split_is_the_evaluation_scenes_that_are_there(tmp_path):
    kitti(tmp_path, 0, 1, 2, 3, 4, 7)
    assert open_dataset(tmp_path, "test").names == ("000002", "000003", "000007")
    assert len(open_dataset(tmp_path, "all")) == 6


def test_kitti_without_evaluation_scenes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no test scenes"):
        open_dataset(kitti(tmp_path, 0, 1), "test")


def test_kitti_trains_on_the_scenes_that_are_not_tested_on(tmp_path):
    kitti(tmp_path, 0, 1, 2, 3, 4, 7)
    train, test = (set(open_dataset(tmp_path, split).names) for split in ("train", "test"))
    assert train == {"000000", "000001", "000004"}
    assert not train & test


@pytest.mark.parametrize("split", ["val", "nonsense"])
def test_kitti_has_no_other_splits(tmp_path, split):
    with pytest.raises(UsageError, match="use one of train, test, all"):
        open_dataset(kitti(tmp_path, 2), split)


@pytest.mark.parametrize("name", ["0000002", "00002", "scene", "000200", "00000a", "٠٠٠٠٠٢"])
def test_kitti_name_is_6_digits(tmp_path, name):
    kitti(tmp_path, 2)
    write_scene(tmp_path / name, [[1, 2, 3]], [[1, 2, 3]])
    with pytest.raises(DataError, match="6 digits, 000000 to 000199"):
        open_dataset(tmp_path, "test")


@pytest.mark.parametrize("name", ["KITTI_processed_occ_final", "kitti_processed"])
def test_kitti_is_found_under_its_usual_names(tmp_path, name):
    kitti(tmp_path / name, 2)
    assert open_dataset(tmp_path, "test").root == tmp_path / name
    assert open_dataset(tmp_path / name, "test").root == tmp_path / name


@pytest.mark.realdata
@pytest.mark.skipif(not REAL_DATA, reason="BPFN_REAL_DATA is not set")
def test_real_kitti_scenes_give_the_published_counts(tmp_path):
    from bpfn_cli.data.prepare.kitti import plan_kitti
    from bpfn_cli.data.prepare.runner import prepare

    prepare(plan_kitti(Path(REAL_DATA or "") / "kitti_scene_flow", tmp_path / "kitti"))
    dataset = open_dataset(tmp_path / "kitti", "test")
    scenes = [dataset.load(index) for index in range(len(dataset))]
    assert dataset.names == ("000002", "000003")
    assert [len(scene.pc1) for scene in scenes] == [40526, 33748]
    lengths = [float(np.linalg.norm(scene.flow, axis=1).mean()) for scene in scenes]
    assert lengths == pytest.approx([0.375, 0.467], abs=0.0005)


# --- bad scenes -----------------------------------------------------------------------------------


def test_missing_pc2_names_its_path(things):
    (things / "train" / "0000003" / "pc2.npy").unlink()
    with pytest.raises(DataError, match=r"0000003/pc2\.npy: no such file"):
        open_dataset(things, "train").load(3)


def test_clouds_of_different_length_give_both_numbers(tmp_path):
    write_scene(tmp_path / "train" / "0000000", np.zeros((3, 3)), np.zeros((5, 3)))
    with pytest.raises(DataError, match="train/0000000: pc1 has 3 points and pc2 5"):
        open_dataset(tmp_path, "train").load(0)


def test_scene_of_far_points_alone_is_refused(tmp_path):
    write_scene(tmp_path / "train" / "0000000", [[0, 0, -40]], [[0, 0, -40]])
    with pytest.raises(DataError, match="none of 1 points is left"):
        open_dataset(tmp_path, "train").load(0)


def test_kitti_scene_of_ground_alone_is_refused(tmp_path):
    write_scene(tmp_path / "000002", [[0, -2, 4]], [[0, -2, 4]])
    with pytest.raises(DataError, match="none of 1 points is left"):
        open_dataset(tmp_path, "test").load(0)


def test_damaged_cloud_names_its_file(things):
    path = things / "train" / "0000001" / "pc1.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"0000001/pc1\.npy: truncated"):
        open_dataset(things, "train").load(1)


def test_cloud_without_permission_is_a_disk_error(things, monkeypatch):
    def refuse(path, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    dataset = open_dataset(things, "train")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DiskError, match="no permission"):
        dataset.load(0)


@pytest.mark.parametrize("split", ["all", "nonsense", ""])
def test_flyingthings3d_has_no_other_splits(things, split):
    with pytest.raises(UsageError, match="use one of train, val, test"):
        open_dataset(things, split)


def test_split_without_scenes_is_refused(things):
    (things / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="no train scenes"):
        open_dataset(things / "empty", "train")
    with pytest.raises(DataError, match="empty: no val scenes"):
        open_dataset(things / "empty", "val")


# --- describe, identity ---------------------------------------------------------------------------


def test_describe_says_kind_count_and_place(things, tmp_path):
    assert describe(open_dataset(things, "train")) == f"flyingthings3d, 10 training scenes in {things}"
    assert describe(open_dataset(things, "val")) == f"flyingthings3d, 2 validation scenes in {things}"
    kitti_root = kitti(tmp_path / "kitti_processed", 0, 2)
    assert describe(open_dataset(kitti_root, "test")) == f"kitti, 1 of the 142 evaluation scenes in {kitti_root}"
    assert describe(open_dataset(kitti_root, "all")) == f"kitti, 2 scenes in {kitti_root}"


def test_describe_says_how_a_subset_was_chosen(things, tmp_path):
    (things / "synthetic.json").write_text('{"kind": "synthetic"}')
    out = tmp_path / "part"
    make_subset(things, out, SubsetOptions())
    assert describe(open_dataset(out, "train")) == f"synthetic, 2 training scenes (1/5 subset, hash, seed 0) in {out}"
    assert describe(open_dataset(out, "test")) == f"synthetic, 2 test scenes in {out}"
    half = tmp_path / "half"
    make_subset(things, half, SubsetOptions(fraction=0.3, val_fraction=0.5, seed=4))
    assert describe(open_dataset(half, "train")).count("(0.3 subset, hash, seed 4)") == 1
    assert describe(open_dataset(half, "val")).count("1 validation scenes (1/2 subset, hash, seed 4)") == 1


def test_identity_of_a_dataset_follows_names_and_sizes(things):
    identity = asdict(find_dataset(things).identity)
    sha256, written = identity.pop("sha256"), identity.pop("written")
    assert datetime.fromisoformat(written) <= datetime.now(timezone.utc)
    assert identity == {
        "kind": "flyingthings3d",
        "source_kind": "flyingthings3d",
        "path": str(things),
        "train_scenes": 10,
        "val_scenes": 2,
        "fraction": None,
        "method": None,
        "seed": None,
    }
    assert find_dataset(things).identity.sha256 == sha256
    (things / "val" / "0000001").rename(things / "val" / "0000002")
    renamed = find_dataset(things).identity.sha256
    write_scene(things / "val" / "0000002", np.zeros((5, 3)), np.zeros((5, 3)))
    assert len({sha256, renamed, find_dataset(things).identity.sha256}) == 3


@pytest.mark.parametrize("kind", ["scenes", "subset", "packed"])
def test_identity_follows_contents(things, tmp_path, kind):
    if kind != "scenes":
        make_subset(things, tmp_path / kind, SubsetOptions(1.0, packed=kind == "packed"))
    root = things if kind == "scenes" else tmp_path / kind
    shutil.copytree(root, tmp_path / "copy")
    before, split = find_dataset(root).identity.sha256, open_dataset(root, "train").identity()
    assert find_dataset(tmp_path / "copy").identity.sha256 == before
    assert open_dataset(tmp_path / "copy", "train").identity() == split
    changed = root / ("train.packed" if kind == "packed" else "train/0000003/pc2.npy")
    content = bytearray(changed.read_bytes())
    content[-200 if kind == "packed" else -20] ^= 1  # a packed file ends with its index
    changed.write_bytes(content)
    assert find_dataset(root).identity.sha256 != before
    assert open_dataset(root, "train").identity() != split


def test_identity_tells_when_files_were_written_last(things):
    before = find_dataset(things).identity
    os.utime(things / "train" / "0000004" / "pc1.npy", (4e9, 4e9))
    after = find_dataset(things).identity
    assert (after.sha256, after.written) == (before.sha256, "2096-10-02T07:06:40+00:00")


def test_identity_of_a_subset_names_its_choice(things, tmp_path):
    make_subset(things, tmp_path / "part", SubsetOptions(seed=7))
    identity = find_dataset(tmp_path / "part").identity
    assert (identity.kind, identity.source_kind) == ("subset", "flyingthings3d")
    assert (identity.fraction, identity.method, identity.seed) == (0.2, "hash", 7)
    assert (identity.train_scenes, identity.val_scenes) == (2, 2)


def test_identity_of_kitti_counts_scenes_to_train_and_to_test_on(tmp_path):
    identity = find_dataset(kitti(tmp_path, 0, 2, 3)).identity
    assert (identity.kind, identity.train_scenes, identity.val_scenes) == ("kitti", 1, 2)


def test_readers_import_neither_torch_nor_the_command_line():
    code = (
        "import sys, bpfn_cli.data.datasets, bpfn_cli.data.subset.make\n"
        "print(sorted({'torch', 'typer', 'rich', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
