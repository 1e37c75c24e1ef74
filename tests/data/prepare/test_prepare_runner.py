# SPDX-License-Identifier: MIT
"""Sources, outputs, failures and interruptions of a preparation."""

from __future__ import annotations

import errno
import itertools
import os
import shutil

import numpy as np
import pytest
from kills import killed_before_change
from raw_downloads import (
    flyingthings3d_scene,
    kitti_tree,
    prepare_flyingthings3d,
    prepare_kitti,
    tree,
)

from bpfn_cli import files
from bpfn_cli.data.prepare import runner as scenes_module
from bpfn_cli.data.prepare.runner import PrepareSummary
from bpfn_cli.errors import BusyError, DataError, DiskError, UsageError
from bpfn_cli.locks import only_writer


@pytest.mark.parametrize("prepare_any", [prepare_kitti, prepare_flyingthings3d])
def test_missing_and_empty_sources_are_refused_before_anything_is_written(tmp_path, prepare_any):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("missing", "empty", "file"):
        with pytest.raises(DataError, match=name):
            prepare_any(tmp_path / name, tmp_path / "out")
    maps = (f"training/{name}" for name in ("disp_occ_0", "disp_occ_1", "flow_occ"))
    for inner in (*maps, "train/flow/left/into_future"):
        (tmp_path / "hollow" / inner).mkdir(parents=True)
    with pytest.raises(DataError, match=r"no scenes found; N+"):
        prepare_any(tmp_path / "hollow", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["2_10.png", "0000002_10.png", "000002_11.png", "x\x1b[31m.png", "٠٠٠٠٠٢_10.png"])
def test_names_that_are_not_kittis_are_refused_with_the_pattern(tmp_path, name):
    source = kitti_tree(tmp_path / "raw")
    (source / "training" / "disp_occ_0" / ".hidden.png").touch()
    (source / "training" / "disp_occ_0" / "notes.txt").touch()
    prepare_kitti(source, tmp_path / "out")
    (source / "training" / "disp_occ_0" / name).touch()
    with pytest.raises(DataError, match=r"not a scene name; NNNNNN_10\.png expected") as caught:
        prepare_kitti(source, tmp_path / "out")
    assert str(caught.value).isprintable()


def test_output_inside_the_source_is_refused(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    (tmp_path / "link").symlink_to(source)
    before = tree(source)
    for out in (source, source / "out", source / "training" / "x", tmp_path / "link" / "out"):
        with pytest.raises(UsageError, match="inside the source"):
            prepare_kitti(source, out)
    assert tree(source) == before
    (tmp_path / "out").symlink_to(tmp_path / "out")  # a loop
    with pytest.raises(DiskError):
        prepare_kitti(source, tmp_path / "out")


def test_output_that_is_a_file_is_a_disk_error(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DiskError, match="out"):
        prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_output_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "out" / "000000").mkdir(parents=True)
    (tmp_path / "out" / "000000" / "pc1.npy").write_text("mine")
    with pytest.raises(UsageError, match="not empty, and not written by bpfn prepare"):
        prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"000000": None, "000000/pc1.npy": b"mine"}


def test_output_of_other_settings_is_left_alone(tmp_path):
    flyingthings3d_scene(tmp_path / "raw" / "train")
    prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(UsageError, match=r"prepared with other settings \(near_m 20, not 35\.0\)"):
        prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", near=20)
    with pytest.raises(UsageError, match=r"prepared with other settings \(kind kitti, not"):
        prepare_kitti(kitti_tree(tmp_path / "kitti"), tmp_path / "out")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100000, "\udcff"])
def test_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prepared.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises((DataError, UsageError)) as caught:
        prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert str(caught.value).isprintable()
    assert "choose another --out" in str(caught.value)


def test_output_that_another_process_writes_is_busy(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out"), pytest.raises(BusyError):
        prepare_kitti(source, tmp_path / "out")


def test_processes_and_progress_do_not_change_the_result(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=5)
    calls: list[tuple[int, int]] = []
    prepare_kitti(source, tmp_path / "one", progress=lambda done, total: calls.append((done, total)))
    prepare_kitti(source, tmp_path / "two", processes=2)
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_all_bad_scenes_are_in_one_error_and_the_good_ones_kept(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=15)
    images = sorted((source / "training" / "disp_occ_1").iterdir())
    whole = images[0].read_bytes()
    for image in images[2:14]:
        image.write_bytes(whole[:-20])
    with pytest.raises(DataError) as caught:
        prepare_kitti(source, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("12 of 15 scenes could not be prepared: ")
    assert message.count("damaged") == 10
    assert "disp_occ_1/000002_10.png" in message
    assert message.endswith("and 2 more")
    assert message.isprintable()
    assert not (tmp_path / "out" / "prepared.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == ["000000", "000001", "000014"]

    for image in images[2:14]:
        image.write_bytes(whole)
    summary = prepare_kitti(source, tmp_path / "out")
    assert (summary.scenes, summary.skipped, summary.points) == (15, 3, 15)


def test_a_forbidden_scene_is_a_disk_error_and_the_others_are_kept(tmp_path, monkeypatch):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    opened = os.open

    def forbid(path, *arguments, **options):
        if str(path).endswith("flow_occ/000001_10.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(files.os, "open", forbid)
    with pytest.raises(DiskError, match=r"1 of 3 scenes .*flow_occ/000001_10\.png: no permission"):
        prepare_kitti(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == ["000000", "000002"]


def test_a_repeated_run_skips_everything_and_changes_nothing(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    first = prepare_kitti(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    again = prepare_kitti(source, tmp_path / "out")
    assert again == PrepareSummary(3, 3, first.points, first.notes)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_scene_that_is_not_whole_is_prepared_again(tmp_path, damage):
    source = kitti_tree(tmp_path / "raw", scenes=2)
    prepare_kitti(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "000001" / "pc1.npy").write_bytes(damage)
    assert prepare_kitti(source, tmp_path / "out").skipped == 1
    assert tree(tmp_path / "out") == before


def test_a_scene_whose_clouds_differ_in_length_is_prepared_again(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    prepare_kitti(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    np.save(tmp_path / "out" / "000000" / "pc1.npy", np.zeros((2, 3), np.float32))
    assert prepare_kitti(source, tmp_path / "out").skipped == 0
    assert tree(tmp_path / "out") == before


def test_killed_at_any_write_a_repeated_run_gives_the_same_bytes(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    prepare_kitti(source, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    for number in itertools.count(1):
        out = tmp_path / f"killed{number}"
        if not killed_before_change(number, out, lambda out=out: prepare_kitti(source, out)):
            break
        assert all(whole[name] == content for name, content in tree(out).items() if name in whole)
        prepare_kitti(source, out)
        assert tree(out) == whole
    assert number > 12


@pytest.mark.endurance
def test_killed_100_times_a_repeated_run_gives_the_same_bytes(tmp_path):
    source, out = kitti_tree(tmp_path / "raw", scenes=40), tmp_path / "out"
    prepare_kitti(source, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    generator, kills = np.random.default_rng(0), 0
    while kills < 100:
        if not killed_before_change(int(generator.integers(1, 90)), out, lambda: prepare_kitti(source, out)):
            assert tree(out) == whole
            shutil.rmtree(out)
            continue
        kills += 1
        left = {name: content for name, content in tree(out).items() if name in whole}
        assert all(whole[name] == content for name, content in left.items()), "half-written or different"
    prepare_kitti(source, out)
    assert tree(out) == whole


def test_a_full_disk_keeps_finished_scenes_and_a_repeated_run_completes(tmp_path, monkeypatch):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    prepare_kitti(source, tmp_path / "whole")
    synced, allowed = (
        os.fsync,
        iter(range(2 * 4)),
    )  # two syncs a file: the record, one scene, half of the next

    def full(descriptor):
        if next(allowed, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(DiskError, match="no space left"):
            prepare_kitti(source, tmp_path / "out")
    left = tree(tmp_path / "out")
    assert {"000000/pc1.npy", "000000/pc2.npy", "000001/pc1.npy"} < set(left)
    assert not any(files.TEMPORARY_PREFIX in name for name in left)
    assert prepare_kitti(source, tmp_path / "out").skipped == 1
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_pc2_is_written_last(tmp_path, monkeypatch):
    order: list[str] = []
    write = scenes_module.write_points
    monkeypatch.setattr(
        scenes_module, "write_points", lambda path, points: (order.append(path.name), write(path, points))
    )
    prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert order == ["pc1.npy", "pc2.npy"]
