# SPDX-License-Identifier: MIT
"""Raw downloads in their archives, and prepared by several jobs: the same bytes as from a folder, by one."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from raw_downloads import flyingthings3d_scene, kitti_tree, prepare_flyingthings3d, prepare_kitti
from scene_folders import contents, damage

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.files.archives import RawFiles
from bpfn_cli.errors import BpfnError, BusyError, DataError, UsageError
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import Shard


def pack(folder: Path, archive: Path, prefix: str = "") -> Path:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for path in files:
                opened.write(path, prefix + str(path.relative_to(folder)))
    else:
        with tarfile.open(archive, "w") as tar:
            for path in files:
                tar.add(path, prefix + str(path.relative_to(folder)))
    return archive


def things(root: Path, scenes: int = 5) -> Path:
    for index in range(scenes):
        disparity = np.full((1, 4), 105.0 + index)
        flyingthings3d_scene(root / "train", f"{index:07d}", disparity=disparity)
    flyingthings3d_scene(root / "val", "0000009")
    return root


def scenes_of(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(out).items() if name.endswith(".npy")}


@pytest.mark.parametrize(
    ("ending", "prefix"),
    [(".zip", ""), (".zip", "FlyingThings3D_subset/"), (".tar", "./"), (".tar", "FlyingThings3D_subset/")],
)
def test_an_archive_gives_the_bytes_of_its_folder(tmp_path: Path, ending: str, prefix: str) -> None:
    folder = things(tmp_path / "raw")
    archive = pack(folder, tmp_path / f"raw{ending}", prefix)
    prepare_flyingthings3d(folder, tmp_path / "a")
    summary = prepare_flyingthings3d(archive, tmp_path / "b")
    assert summary.scenes == 6
    assert scenes_of(tmp_path / "a") == scenes_of(tmp_path / "b") != {}
    again = prepare_flyingthings3d(archive, tmp_path / "b")
    assert again.skipped == 6


@pytest.mark.parametrize("calibration", ["given", "beside", "none"])
def test_kitti_archives_as_the_site_delivers_them(tmp_path: Path, calibration: str) -> None:
    kitti_tree(tmp_path / "flow", scenes=2, calibration=tmp_path / "calib")
    archive = pack(tmp_path / "flow", tmp_path / "data_scene_flow.zip")
    place = tmp_path / ("data_scene_flow_calib.zip" if calibration == "beside" else "other.zip")
    if calibration != "none":
        pack(tmp_path / "calib", place)
    given = place if calibration == "given" else None
    summary = prepare_kitti(archive, tmp_path / "b", calibration=given)
    assert bool(summary.notes) == (calibration == "none")
    known = None if calibration == "none" else tmp_path / "calib"
    prepare_kitti(tmp_path / "flow", tmp_path / "a", calibration=known)
    assert scenes_of(tmp_path / "a") == scenes_of(tmp_path / "b") != {}


@pytest.mark.parametrize("name", ["raw.tar.bz2", "raw.tgz"])
def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="no random access; unpack it"):
        prepare_flyingthings3d(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("ending", [".zip", ".tar"])
@pytest.mark.parametrize("seed", range(12))
def test_no_damage_to_an_archive_gives_a_traceback(tmp_path: Path, ending: str, seed: int) -> None:
    archive = pack(things(tmp_path / "raw", scenes=1), tmp_path / f"raw{ending}")
    damage(archive, seed, changes=6)
    try:
        prepare_flyingthings3d(archive, tmp_path / "out")
    except BpfnError as error:
        assert "\n" not in str(error)


def test_a_missing_map_in_an_archive_is_named(tmp_path: Path) -> None:
    folder = things(tmp_path / "raw", scenes=2)
    (folder / "train" / "disparity" / "left" / "0000001.pfm").unlink()
    with pytest.raises(DataError, match=r"1 of 3 scenes.*raw\.zip/train/disparity/left/0000001\.pfm: no such file"):
        prepare_flyingthings3d(pack(folder, tmp_path / "raw.zip"), tmp_path / "out")


def test_names_in_an_archive_cannot_leave_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as opened:
        opened.writestr("../outside.txt", "x")
        opened.writestr("train/flow/left/into_future/../../../../0000000.flo", "x")
    with pytest.raises(DataError):
        prepare_flyingthings3d(tmp_path / "raw.zip", tmp_path / "out")
    assert not (tmp_path / "outside.txt").exists()


def test_files_of_a_folder_and_of_an_archive_look_alike(tmp_path: Path) -> None:
    folder = things(tmp_path / "raw", scenes=1)
    for files in (RawFiles(folder), RawFiles(pack(folder, tmp_path / "raw.zip"))):
        below = files.below("train").below("disparity/left")
        assert below.names() == ["0000000.pfm"]
        assert (below.has("0000000.pfm"), below.has("none")) == (True, False)
        assert (files.has_folder("train/disparity"), files.has_folder("test")) == (True, False)
        assert below.read("0000000.pfm") == (folder / "train/disparity/left/0000000.pfm").read_bytes()
        with pytest.raises(DataError, match="no such folder"):
            files.below("nowhere").names()


# --- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]])
def test_shards_together_are_the_whole(tmp_path: Path, order: list[int]) -> None:
    folder = things(tmp_path / "raw")
    prepare_flyingthings3d(folder, tmp_path / "whole")
    counts = []
    for done, index in enumerate(order):
        if done:
            with pytest.raises(DataError, match="unfinished"):
                open_dataset(tmp_path / "out", "train")
        counts.append(prepare_flyingthings3d(folder, tmp_path / "out", shard=Shard(index, 3)).scenes)
    assert sorted(counts) == [2, 2, 2]
    assert scenes_of(tmp_path / "out") == scenes_of(tmp_path / "whole")
    assert (tmp_path / "out" / "prepared.json").read_bytes() == (tmp_path / "whole" / "prepared.json").read_bytes()
    assert len(open_dataset(tmp_path / "out", "train")) == 5
    assert prepare_flyingthings3d(folder, tmp_path / "out", shard=Shard(2, 3)).skipped == 2


def test_shards_of_fewer_scenes_do_not_finish_the_folder(tmp_path: Path) -> None:
    folder, out = things(tmp_path / "raw"), tmp_path / "out"
    prepare_flyingthings3d(folder, out, shard=Shard(2, 2), limit=2)
    prepare_flyingthings3d(folder, out, shard=Shard(1, 2))
    with pytest.raises(DataError, match="unfinished"):
        open_dataset(out, "train")
    prepare_flyingthings3d(folder, out, shard=Shard(2, 2))
    assert len(open_dataset(out, "train")) == 5


def test_shards_work_side_by_side_but_not_beside_the_whole(tmp_path: Path) -> None:
    folder, out = things(tmp_path / "raw"), tmp_path / "out"
    prepare_flyingthings3d(folder, out, shard=Shard(1, 2))
    with only_writer(out, shared=True):  # another shard is at work
        prepare_flyingthings3d(folder, out, shard=Shard(2, 2))
        with pytest.raises(BusyError):
            prepare_flyingthings3d(folder, out)
    with only_writer(out), pytest.raises(BusyError):
        prepare_flyingthings3d(folder, out, shard=Shard(1, 2))
    with only_writer(out / ".shard-1-of-2"), pytest.raises(BusyError):
        prepare_flyingthings3d(folder, out, shard=Shard(1, 2))


def test_a_shard_that_begins_in_the_same_moment_is_no_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's record and first scene come between our two looks at the folder."""
    folder, out = things(tmp_path / "raw"), tmp_path / "out"
    listed = Path.iterdir

    def list_late(path: Path) -> list[Path]:
        if path == out and not (out / "train").exists():
            monkeypatch.setattr(Path, "iterdir", listed)
            prepare_flyingthings3d(folder, out, shard=Shard(2, 2))
        return list(listed(path))

    monkeypatch.setattr(Path, "iterdir", list_late)
    prepare_flyingthings3d(folder, out, shard=Shard(1, 2))
    assert len(open_dataset(out, "train")) == 5


def test_more_shards_than_scenes_leave_some_with_nothing(tmp_path: Path) -> None:
    folder = things(tmp_path / "raw", scenes=1)
    counts = [prepare_flyingthings3d(folder, tmp_path / "out", shard=Shard(i, 4)).scenes for i in (1, 2, 3, 4)]
    assert counts == [1, 1, 0, 0]
    assert len(open_dataset(tmp_path / "out", "train")) == 1


def test_a_shard_of_other_settings_is_refused(tmp_path: Path) -> None:
    folder = things(tmp_path / "raw")
    prepare_flyingthings3d(folder, tmp_path / "out", shard=Shard(1, 2))
    with pytest.raises(UsageError, match="near_m"):
        prepare_flyingthings3d(folder, tmp_path / "out", shard=Shard(2, 2), near=20)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "٣/٤"])
def test_impossible_shards_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="use I/N"):
        Shard.parse(text)
    assert Shard.parse("3/8") == Shard(3, 8)
