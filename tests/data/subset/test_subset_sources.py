# SPDX-License-Identifier: MIT
"""Sources and disks that cannot be used."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scene_folders import write_flyingthings3d, write_scene
from subset_runs import COPY, HALF, chosen, edit, refused

from bpfn_cli.data.subset import make, transfer
from bpfn_cli.data.subset.make import make_subset, verify_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import plan_subset
from bpfn_cli.errors import DataError, DiskError, UsageError


@pytest.mark.parametrize("where", ["part", "train/part", ".", ".."])
def test_target_and_source_inside_each_other_are_refused(source, where):
    assert "overlaps with the source" in refused(UsageError, source, source / where, HALF)
    assert not (source / "part").exists()


def test_linked_target_inside_the_source_is_refused(source, out):
    out.symlink_to(source)
    assert "overlaps with the source" in refused(UsageError, source, out / "part", HALF)


def test_target_beside_the_source_of_the_usual_name_is_fine(tmp_path):
    write_flyingthings3d(tmp_path / "FlyingThings3D_subset_processed_35m")
    assert make_subset(tmp_path, tmp_path / "part", HALF).after.train_scenes == 5


def test_empty_source_is_refused(tmp_path, out):
    (tmp_path / "source" / "train").mkdir(parents=True)
    assert "no training scenes" in refused(DataError, tmp_path / "source", out, HALF)
    assert not out.exists()
    write_flyingthings3d(tmp_path / "source", train=2, val=0)
    assert "no validation scenes" in refused(DataError, tmp_path / "source", out, SubsetOptions(val_fraction=0.5))


def test_kitti_is_no_source(tmp_path, out):
    write_scene(tmp_path / "kitti_processed" / "000002", [[1, 2, 3]], [[1, 2, 3]])
    assert "no dataset" in refused(DataError, tmp_path, out, HALF)


@pytest.mark.parametrize("names", [("a", "A"), ("straße", "STRASSE"), ("é", "e\u0301")])
def test_names_that_collide_elsewhere_are_refused(tmp_path, out, names):
    write_flyingthings3d(tmp_path / "source", train=names)
    assert "the same name on some file systems" in refused(DataError, tmp_path / "source", out, HALF)


def test_loops_and_stray_entries_of_the_source_are_reported(source, out):
    (source / "train" / "loop").symlink_to(source)
    (source / "train" / "itself").symlink_to("itself")
    (source / "val" / "README").write_text("")
    summary = make_subset(source, out, SubsetOptions(1.0))
    assert summary.skipped == ("train/itself", "train/loop", "val/README")
    assert summary.after.train_scenes == 10


def test_missing_files_of_all_scenes_are_listed(source, out):
    (source / "train" / "0000001" / "pc2.npy").unlink()
    (source / "val" / "0000001" / "pc1.npy").unlink()
    message = refused(DataError, source, out, HALF)
    assert "train/0000001/pc2.npy is missing, val/0000001/pc1.npy is missing" in message
    assert not out.exists()


def test_damaged_scenes_are_all_tried_and_listed(source, out):
    (source / "train" / "0000003" / "pc1.npy").write_bytes(b"<html>")
    nan = source / "val" / "0000001" / "pc2.npy"
    np.save(nan, np.full((20, 3), np.nan, np.float32))
    write_scene(source / "train" / "0000008", np.zeros((3, 3)), np.zeros((4, 3)))
    message = refused(DataError, source, out, SubsetOptions(1.0))
    assert message.startswith("3 of 12 scenes are damaged")
    assert "0000003/pc1.npy: a web page" in message
    assert "train/0000008: pc1 has 3 points and pc2 4" in message
    assert "0000001/pc2.npy: points: 20 of 20 rows hold NaN" in message
    assert not (out / "subset.json").exists()


@pytest.mark.parametrize("change", ["grows", "shrinks", "edited", "replaced", "removed"])
def test_source_that_changes_meanwhile_is_refused(source, out, monkeypatch, change):
    path = source / "train" / chosen(source, HALF)[0] / "pc1.npy"
    read = transfer.read_file

    def read_and_change(asked):
        content = read(asked)
        if asked == path:
            if change == "grows":
                path.write_bytes(content + b"more")
            elif change == "shrinks":
                path.write_bytes(content[:-4])
            elif change == "edited":
                edit(path)
            elif change == "replaced":
                status = path.stat()
                path.rename(path.with_name("old"))
                path.write_bytes(content)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            else:
                path.unlink()
        return content

    monkeypatch.setattr(transfer, "read_file", read_and_change)
    message = refused(DataError, source, out, HALF)
    assert f"{path}: changed while the subset was made" in message
    assert not (out / "subset.json").exists()


def test_source_that_vanishes_meanwhile_is_refused(source, out, monkeypatch):
    plan = plan_subset(source, HALF)
    monkeypatch.setattr(make, "plan_subset", lambda *_, **__: plan)
    (source / "train" / plan.chosen["train"][0] / "pc1.npy").unlink()
    assert "pc1.npy: no such file" in refused(DataError, source, out, HALF)


def test_unreadable_source_is_a_disk_error(source, out, monkeypatch):
    opened = os.open
    name = chosen(source, HALF)[0]

    def refuse(path, *arguments, **options):
        if str(path).startswith(str(source)) and name in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    message = refused(DiskError, source, out, HALF)
    assert f"{name}/pc1.npy" in message
    assert not (out / "subset.json").exists()


def test_first_fault_ends_the_work(source, out, monkeypatch):
    tried = []

    def fail(*arguments):
        tried.append(arguments)
        time.sleep(0.01)
        raise DiskError("full")

    monkeypatch.setattr(transfer, "transfer_scene", fail)
    assert refused(DiskError, source, out, SubsetOptions(1.0), processes=1) == "full"
    assert len(tried) < 12


@pytest.mark.parametrize("processes", [0, -1])
def test_no_threads_is_refused(source, out, processes):
    assert "use 1 or more" in refused(UsageError, source, out, HALF, processes=processes)


def test_full_disk_is_seen_before_anything_is_written(source, out, monkeypatch):
    disk = SimpleNamespace(f_frsize=4096, f_bavail=10, f_files=1000, f_favail=1000)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    message = refused(DiskError, source, out, COPY)
    # 14 files of a block each, 7 scene folders and 2 split folders, and 14 * 256 bytes of subset.json
    assert f"needs {23 * 4096 + 14 * 256:,} bytes and {10 * 4096:,} are free" in message
    assert not out.exists()


def test_hard_links_need_no_room_for_the_files(source, out, monkeypatch):
    disk = SimpleNamespace(f_frsize=4096, f_bavail=10, f_files=1000, f_favail=1000)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert make_subset(source, out, HALF).after.train_scenes == 5


def test_files_that_are_there_need_no_room(source, out, monkeypatch):
    make_subset(source, out, COPY)
    next(out.glob("train/*/pc1.npy")).unlink()
    disk = SimpleNamespace(f_frsize=4096, f_bavail=4, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    make_subset(source, out, COPY)


def test_want_of_inodes_is_seen_before_anything_is_written(source, out, monkeypatch):
    disk = SimpleNamespace(f_frsize=4096, f_bavail=10**6, f_files=1000, f_favail=24)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert "needs 25 inodes and 24 are free" in refused(DiskError, source, out, COPY)
    assert not out.exists()


def test_disk_that_fills_midway_keeps_what_is_finished(source, out, monkeypatch):
    write = transfer.write_atomic
    written: list[Path] = []

    def fill(path, content):
        if len(written) == 5:
            raise DiskError(f"{path}: no space left on the disk")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(transfer, "write_atomic", fill)
    assert "no space left" in refused(DiskError, source, out, COPY, processes=1)
    assert len(list(out.glob("*/*/*.npy"))) == 5
    assert not (out / "subset.json").exists()
    monkeypatch.setattr(transfer, "write_atomic", write)
    make_subset(source, out, COPY)
    assert verify_subset(out)


_TMPFS = """
mount -t tmpfs -o {options} none "$0" || exit 99
"$1" -c '
import sys
from pathlib import Path
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.errors import DiskError
try:
    make_subset(Path(sys.argv[1]), Path(sys.argv[2]), SubsetOptions(1.0))
except DiskError as error:
    print(error)
print(sorted(path.name for path in Path(sys.argv[2]).rglob("*")))
' "$2" "$0/out"
"""


@pytest.mark.parametrize(("options", "said"), [("size=200k", "bytes and"), ("size=9m,nr_inodes=20", "inodes and")])
def test_real_small_disk_says_what_is_needed(tmp_path, options, said):
    source = write_flyingthings3d(tmp_path / "source", points=1000)
    mount = tmp_path / "mount"
    mount.mkdir()
    script = _TMPFS.format(options=options)
    done = (
        subprocess.run(
            ["unshare", "-Urm", "sh", "-c", script, str(mount), sys.executable, str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("unshare")
        else None
    )
    if done is None or done.returncode:
        pytest.skip("needs user namespaces to mount a tmpfs")
    lines = done.stdout.splitlines()
    assert said in lines[0]
    assert "are free" in lines[0]
    assert lines[1] == "[]"


def test_target_that_is_a_file_is_a_disk_error(source, out):
    out.write_text("")
    assert "is a file; a folder is needed" in refused(DiskError, source, out, HALF)
