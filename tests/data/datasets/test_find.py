# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
from pathlib import Path

import pytest
from scene_folders import write_flyingthings3d, write_random_scene, write_scene

from bpfn_cli.data.contents import fingerprint
from bpfn_cli.data.datasets import find_dataset
from bpfn_cli.data.datasets.folders import file_sizes, list_scenes
from bpfn_cli.data.subset.make import SubsetOptions, make_subset
from bpfn_cli.data.subset.manifest import SOURCE_KINDS
from bpfn_cli.errors import DataError, DiskError


def test_dataset_is_found_in_the_folder_above_it(tmp_path):
    root = write_flyingthings3d(tmp_path / "FlyingThings3D_subset_processed_35m")
    assert find_dataset(tmp_path).root == find_dataset(root).root == root


def test_two_datasets_in_one_folder_are_not_guessed(tmp_path):
    write_flyingthings3d(tmp_path / "FlyingThings3D_subset_processed_35m")
    write_scene(tmp_path / "kitti_processed" / "000002", [[1, 2, 3]], [[1, 2, 3]])
    with pytest.raises(DataError, match="contains both FlyingThings3D_subset_processed_35m and kitti_processed"):
        find_dataset(tmp_path)
    assert find_dataset(tmp_path, SOURCE_KINDS).format.name == "flyingthings3d"


def test_folder_of_something_else_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match=r"no dataset; looked for train/ and val/ .*KITTI_processed_occ_final"):
        find_dataset(tmp_path)
    with pytest.raises(DataError, match="absent: no such folder"):
        find_dataset(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: no such folder"):
        find_dataset(tmp_path / "file")
    with pytest.raises(DataError, match=r"a\\x00b: no such folder"):
        find_dataset(tmp_path / "a\0b")
    with pytest.raises(DiskError, match="name is too long"):
        find_dataset(tmp_path / ("n" * 300))


@pytest.mark.parametrize(
    ("folder", "command"),
    [("train/disparity/left", "flyingthings3d"), ("training/disp_occ_0", "kitti")],
)
def test_raw_download_says_to_prepare_it(tmp_path, folder, command):
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=f"run `bpfn prepare {command}`"):
        find_dataset(tmp_path)


def test_the_train_folder_alone_says_to_give_the_one_above(tmp_path):
    write_flyingthings3d(tmp_path)
    with pytest.raises(DataError, match=r"the folder that holds train/ and val/"):
        find_dataset(tmp_path / "train").open("test")


@pytest.mark.parametrize("record", ["subset.json", "synthetic.json", "prepared.json"])
def test_unfinished_dataset_is_refused(tmp_path, record):
    write_flyingthings3d(tmp_path)
    (tmp_path / f"{record}.partial").write_text("{}")
    with pytest.raises(DataError, match="unfinished; repeat the command"):
        find_dataset(tmp_path)


def test_unfinished_kitti_is_refused(tmp_path):
    write_scene(tmp_path / "000002", [[1, 2, 3]], [[1, 2, 3]])
    (tmp_path / "prepared.json.partial").write_text("{}")
    with pytest.raises(DataError, match="unfinished"):
        find_dataset(tmp_path)


def test_hidden_entries_stray_files_and_loops_are_no_scenes(tmp_path):
    folder = tmp_path / "train"
    write_random_scene(folder / "0000000", 0)
    write_random_scene(folder / ".hidden", 1)
    (folder / "README.txt").write_text("")
    (folder / "itself").symlink_to("itself")
    (folder / "above").symlink_to(tmp_path)
    (folder / "here").symlink_to(folder)
    (folder / "nowhere").symlink_to("absent")
    elsewhere = write_random_scene(tmp_path / "elsewhere", 2)
    (folder / "linked").symlink_to(elsewhere)
    assert list_scenes(folder) == (
        ("0000000", "linked"),
        ("README.txt", "above", "here", "itself", "nowhere"),
    )


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "back\\slash", "\udcff", "a\u202eb"])
def test_scene_folder_of_a_hostile_name_is_refused_and_shown_escaped(tmp_path, name):
    write_random_scene(tmp_path / "train" / name, 0)
    with pytest.raises(DataError, match="cannot be a scene name") as refused:
        find_dataset(tmp_path).scenes["train"]
    assert str(refused.value).isprintable()


def test_odd_but_valid_names_are_read(tmp_path):
    names = ["-f", "a b", "été", "scene.1", "中文"]
    write_flyingthings3d(tmp_path / "-données et plus", train=names, val=0)
    assert find_dataset(tmp_path / "-données et plus").scenes["train"] == tuple(sorted(names))


def test_every_missing_file_is_listed_before_anything_is_said(tmp_path):
    write_flyingthings3d(tmp_path, train=30, val=0)
    for scene in range(12):
        (tmp_path / "train" / f"{scene:07d}" / "pc2.npy").unlink()
    os.mkfifo(tmp_path / "train" / "0000000" / "pc2.npy")
    names = {"train": find_dataset(tmp_path).scenes["train"]}
    with pytest.raises(DataError) as refused:
        file_sizes(tmp_path, names)
    message = str(refused.value)
    assert "train/0000000/pc2.npy is not a regular file, train/0000001/pc2.npy is missing" in message
    assert "train/0000009/pc2.npy is missing and 2 more" in message
    assert "\n" not in message


def test_file_without_permission_is_a_disk_error(tmp_path, monkeypatch):
    write_flyingthings3d(tmp_path, train=1, val=0)

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DiskError, match=r"0000000/pc1\.npy: no permission"):
        file_sizes(tmp_path, {"train": ("0000000",)})


def test_fingerprint_by_hand():
    sizes = {"train/b/pc1.npy": 2, "train/a/pc1.npy": 1}
    assert fingerprint(sizes) == fingerprint(dict(reversed(sizes.items())))
    # printf 'train/a/pc1.npy 1\ntrain/b/pc1.npy 2\n' | sha256sum
    assert fingerprint(sizes) == "2295ec2701631c4a6a3bb0423cf11ca1f584285bd01f3ab572ea075f8d0df189"


# --- subsets --------------------------------------------------------------------------------------


@pytest.fixture
def subset(tmp_path: Path) -> Path:
    make_subset(write_flyingthings3d(tmp_path / "source"), tmp_path / "subset", SubsetOptions(0.5))
    return tmp_path / "subset"


def test_subset_with_missing_or_foreign_scenes_is_refused(subset):
    first = find_dataset(subset).scenes["train"][0]
    (subset / "train" / first).rename(subset / "train" / "9999999")
    with pytest.raises(DataError, match=f"{first} is missing, 9999999 is foreign"):
        find_dataset(subset).scenes["train"]


@pytest.mark.parametrize("what", ["scene", "split"])
def test_subset_with_a_link_out_of_itself_is_refused(subset, what):
    inside = subset / "train" / find_dataset(subset).scenes["train"][0] if what == "scene" else subset / "train"
    outside = subset.parent / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(DataError, match="a link out of the subset"):
        find_dataset(subset).scenes["train"]


def test_subset_whose_manifest_is_a_dangling_link_is_no_plain_dataset(subset):
    (subset / "subset.json").unlink()
    (subset / "subset.json").symlink_to("absent")
    with pytest.raises(DataError, match=r"subset\.json: no such file"):
        find_dataset(subset)
