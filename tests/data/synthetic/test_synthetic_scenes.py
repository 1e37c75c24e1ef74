# SPDX-License-Identifier: MIT
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kills import killed_before_change

from bpfn_cli.data.datasets.flyingthings3d import is_synthetic
from bpfn_cli.data.synthetic import render as synthetic
from bpfn_cli.data.synthetic.render import SyntheticOptions, render_scene, write_synthetic
from bpfn_cli.errors import BusyError, DataError, DiskError, OutOfMemoryError, UsageError
from bpfn_cli.locks import only_writer

PACKAGE = Path(synthetic.__file__).parents[2]
SMALL = SyntheticOptions(train=5, val=2, seed=3, height=27)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole") / "scenes"
    write_synthetic(folder, SMALL, processes=1)
    return folder


# Scenes


def test_scene_is_row_correspondent_float32_in_the_internal_frame():
    pc1, pc2 = render_scene(seed=0, index=0, split="train", height=54)
    assert pc1.dtype == pc2.dtype == np.float32
    assert pc1.shape == pc2.shape == (len(pc1), 3)
    assert np.isfinite(pc1).all() and np.isfinite(pc2).all()
    for points in (pc1, pc2):  # inside FlyingThings3D's image (x left, y up) and before the sky
        u, v = np.array([[479.5], [269.5]]) - 1050.0 * points[:, :2].T / points[:, 2]
        assert points[:, 2].min() > 0.1 and points[:, 2].max() <= 40.0
        assert u.min() > -8.0 and u.max() < 967.0 and v.min() > -8.0 and v.max() < 547.0
    pixels = np.array([47.5, 26.5]) - 105.0 * pc1[:, :2] / pc1[:, 2:]  # frame 1 is cast through pixel centers
    assert np.abs(pixels - np.round(pixels)).max() < 1e-3
    # the lower half of the picture is nearer than the upper: y is up
    assert np.median(pc1[pc1[:, 1] < -0.5, 2]) < np.median(pc1[pc1[:, 1] > 0.5, 2])


@pytest.mark.parametrize("index", range(2))
def test_scene_has_enough_points_to_draw_8192_after_the_depth_cut(index):
    pc1, pc2 = render_scene(seed=1, index=index, split="val", height=135)
    assert np.count_nonzero((pc1[:, 2] < 35.0) & (pc2[:, 2] < 35.0)) >= 9000


def test_sparse_layout_is_drawn_again(monkeypatch):
    first = [len(render_scene(0, index, "train", 27)[0]) for index in range(6)]
    monkeypatch.setattr(synthetic, "ENOUGH", (min(first) + 1) / (27 * 48))
    again = [len(render_scene(0, index, "train", 27)[0]) for index in range(6)]
    assert min(again) > min(first)
    assert sum(a != b for a, b in zip(first, again, strict=True)) < 6


def test_scene_depends_on_seed_split_index_and_nothing_else():
    scene = render_scene(0, 1, "train", 27)
    again = render_scene(0, 1, "train", 27)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(scene, again, strict=True))
    for other in ((1, 1, "train"), (0, 2, "train"), (0, 1, "val")):
        assert render_scene(*other, 27)[0].tobytes() != scene[0].tobytes()


def test_scene_bytes_are_those_of_this_format():
    """If this fails and was meant to: raise synthetic.FORMAT, or old folders pass for new ones."""
    pc1, pc2 = render_scene(0, 0, "train", 27)
    digest = hashlib.sha256(pc1.tobytes() + pc2.tobytes()).hexdigest()
    assert (synthetic.FORMAT, digest[:16]) == (1, "30690380d8c64b4d")


def test_flow_length_is_near_flyingthings3d():
    lengths = [np.linalg.norm(np.subtract(*render_scene(0, i, "train", 27)), axis=1) for i in range(40)]
    medians = np.array([np.median(length) for length in lengths])
    assert 0.6 <= np.median(medians) <= 0.9
    assert np.mean((medians >= 0.3) & (medians <= 1.5)) >= 0.8
    assert 0.5 <= np.median(np.concatenate(lengths)) <= 1.0
    assert max(length.max() for length in lengths) < 8.0


# Options


@pytest.mark.parametrize(
    "key, value",
    [
        ("train", -1),
        ("train", 10_000_000),
        ("val", -1),
        ("val", 2.0),
        ("seed", -1),
        ("seed", 2**32),
        ("height", 0),
        ("height", 26),
        ("height", 1081),
        ("height", "135"),
        ("height", float("nan")),
        ("train", True),
    ],
)
def test_nonsense_options_are_refused_by_name(key, value):
    with pytest.raises(UsageError, match=f"synthetic {key} .*: use a whole number from"):
        SyntheticOptions(**{key: value})


def test_no_scene_at_all_is_refused():
    with pytest.raises(UsageError, match="at least one scene"):
        SyntheticOptions(train=0, val=0)


def test_unknown_split_and_no_process_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"split 'test\\x1b': use train or val"):
        render_scene(0, 0, "test\x1b", 27)
    with pytest.raises(UsageError, match="processes 0: use 1 or more"):
        write_synthetic(tmp_path / "out", SMALL, processes=0)
    assert not (tmp_path / "out").exists()


# Files


def test_layout_and_axes_on_disk(whole):
    scenes = [f"train/{index:07d}" for index in range(5)] + ["val/0000000", "val/0000001"]
    expected = {f"{scene}/{cloud}" for scene in scenes for cloud in ("pc1.npy", "pc2.npy")}
    assert set(files_of(whole)) == expected | {"synthetic.json"}
    for split, index in (("train", 4), ("val", 0)):
        for k, cloud in enumerate(render_scene(3, index, split, 27), start=1):
            on_disk = np.load(whole / split / f"{index:07d}" / f"pc{k}.npy")
            assert on_disk.dtype == np.float32 and on_disk.flags.c_contiguous
            assert np.array_equal(on_disk, cloud * [-1, 1, -1])
            assert on_disk[:, 2].max() < 0  # z is negative forward


def test_record_says_what_was_made(whole):
    assert json.loads((whole / "synthetic.json").read_text()) == {
        "format": 1,
        "kind": "synthetic",
        "train": 5,
        "val": 2,
        "seed": 3,
        "height": 27,
        "width": 48,
        "camera": {"focal": 52.5, "cx": 23.5, "cy": 13.0},
    }


def test_bytes_do_not_depend_on_the_number_of_processes(whole, tmp_path):
    calls = []
    write_synthetic(tmp_path / "two", SMALL, processes=2, progress=lambda *call: calls.append(call))
    assert files_of(tmp_path / "two") == files_of(whole)
    assert calls == [(done, 7) for done in range(1, 8)]


def test_one_split_may_be_empty(tmp_path):
    write_synthetic(tmp_path, replace(SMALL, train=0, val=1), processes=2)
    assert len(files_of(tmp_path)) == 3 and not (tmp_path / "train").exists()


def test_finished_folder_is_left_alone(whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in [whole, *whole.rglob("*")]}
    monkeypatch.setattr(synthetic, "render_scene", None)
    write_synthetic(whole, SMALL, processes=1, progress=lambda *_: pytest.fail("nothing to do"))
    assert before == {path: path.stat().st_mtime_ns for path in [whole, *whole.rglob("*")]}


def test_only_a_finished_folder_is_synthetic(whole, tmp_path):
    assert is_synthetic(whole)
    assert not is_synthetic(tmp_path)
    assert not is_synthetic(tmp_path / "missing")
    (tmp_path / "synthetic.json.partial").write_bytes((whole / "synthetic.json").read_bytes())
    assert not is_synthetic(tmp_path)
    (tmp_path / "synthetic.json").write_text('{"kind": "other"}')
    assert not is_synthetic(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_record_is_said(content, tmp_path):
    (tmp_path / "synthetic.json").write_bytes(content)
    with pytest.raises(DataError, match=r"synthetic\.json: damaged record"):
        is_synthetic(tmp_path)
    with pytest.raises(UsageError, match="other options"):
        write_synthetic(tmp_path, SMALL, processes=1)


def test_record_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "synthetic.json")
    with pytest.raises(DataError, match="is a pipe"):
        is_synthetic(tmp_path)


# Interruptions


def test_stopped_run_is_completed_without_rendering_anything_twice(whole, tmp_path, monkeypatch):
    folder = tmp_path / "scenes"

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(folder, SMALL, processes=1, progress=stop)
    assert not is_synthetic(folder)
    (folder / "train/0000001/pc2.npy").unlink()  # as if killed between the two files
    (folder / "train/0000001/.bpfn-tmp-abc").write_bytes(b"half")
    rendered, calls = [], []
    monkeypatch.setattr(synthetic, "render_scene", lambda *scene: rendered.append(scene[1:3]) or render_scene(*scene))
    write_synthetic(folder, SMALL, processes=1, progress=lambda *call: calls.append(call))
    assert files_of(folder) == files_of(whole)
    assert rendered == [(1, "train"), (3, "train"), (4, "train"), (0, "val"), (1, "val")]
    assert calls == [(done, 7) for done in range(2, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_is_completed_to_the_same_bytes(processes, tmp_path):
    options = SyntheticOptions(train=16, val=4, height=54)
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from bpfn_cli.data.synthetic.render import SyntheticOptions, write_synthetic\n"
        "if __name__ == '__main__':\n"
        f"    write_synthetic(Path({str(tmp_path / 'killed')!r}), {options!r}, {processes})\n"
    )
    write_synthetic(tmp_path / "whole", options, processes=1)
    for scenes in (1, 10):
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        process = subprocess.Popen([sys.executable, script], env=environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "killed").glob("*/*/pc2.npy"))) < scenes:
            assert process.poll() is None and time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "synthetic.json").exists()
        written = {name: content for name, content in files_of(tmp_path / "killed").items() if "/pc" in name}
        assert written.items() <= files_of(tmp_path / "whole").items()
    write_synthetic(tmp_path / "killed", options, processes=1)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_run_killed_at_any_write_completes_to_the_same_bytes(whole, tmp_path):
    for number in (2, 5, 6, 13, 26):
        folder = tmp_path / f"killed{number}"
        assert killed_before_change(number, folder, lambda folder=folder: write_synthetic(folder, SMALL, processes=1))
        write_synthetic(folder, SMALL, processes=1)
        assert files_of(folder) == files_of(whole)


def test_kill_just_after_the_record_leaves_a_finished_folder(whole, tmp_path):
    write_synthetic(tmp_path, SMALL, processes=1)
    (tmp_path / "synthetic.json.partial").write_bytes((tmp_path / "synthetic.json").read_bytes())
    write_synthetic(tmp_path, SMALL, processes=1)
    assert files_of(tmp_path) == files_of(whole)


@pytest.mark.slow
def test_killed_worker_is_an_error_and_the_repetition_completes(whole, tmp_path):
    def kill(done, total):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(OutOfMemoryError, match="repeat with fewer processes"):
        write_synthetic(tmp_path, replace(SMALL, train=60), processes=2, progress=kill)
    write_synthetic(tmp_path, replace(SMALL, train=60), processes=1)
    assert len(files_of(tmp_path)) == 62 * 2 + 1
    assert (tmp_path / "val/0000001/pc1.npy").read_bytes() == (whole / "val/0000001/pc1.npy").read_bytes()


def test_full_disk_keeps_what_is_written(whole, tmp_path, monkeypatch):
    write_points = synthetic.write_points

    def full(path, points):
        if path == tmp_path / "train/0000002/pc2.npy":
            raise DiskError(f"{path}: no space left")
        write_points(path, points)

    monkeypatch.setattr(synthetic, "write_points", full)
    with pytest.raises(DiskError, match="no space left"):
        write_synthetic(tmp_path, SMALL, processes=1)
    assert sorted(files_of(tmp_path)) == [
        "synthetic.json.partial",
        "train/0000000/pc1.npy",
        "train/0000000/pc2.npy",
        "train/0000001/pc1.npy",
        "train/0000001/pc2.npy",
        "train/0000002/pc1.npy",
    ]
    monkeypatch.undo()
    write_synthetic(tmp_path, SMALL, processes=1)
    assert files_of(tmp_path) == files_of(whole)


# Folders that are someone else's


@pytest.mark.parametrize("other", [{"seed": 4}, {"train": 6}, {"val": 1}, {"height": 36}])
def test_finished_folder_of_other_options_is_refused(other, whole):
    with pytest.raises(UsageError, match=r"synthetic\.json: .*other options; choose another --out, or "):
        write_synthetic(whole, replace(SMALL, **other), processes=1)


def test_unfinished_folder_of_other_options_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_write_scene", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_synthetic(tmp_path, SMALL, processes=1)
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match="unfinished run with other options; choose another --out, or "):
        write_synthetic(tmp_path, replace(SMALL, seed=4), processes=1)
    assert files_of(tmp_path) == before and list(before) == ["synthetic.json.partial"]


@pytest.mark.parametrize("name", ["notes.txt", "train/0000000/pc1.npy", "a\x1b/b", "synthetic.json.old"])
@pytest.mark.parametrize("unfinished", [False, True])
def test_foreign_content_is_refused_and_kept(name, unfinished, whole, tmp_path):
    if unfinished:
        name = {"train/0000000/pc1.npy": "train/0000005/pc1.npy"}.get(name, name)  # SMALL ends at 4
        (tmp_path / "synthetic.json.partial").write_bytes((whole / "synthetic.json").read_bytes())
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match="not part of these synthetic scenes; choose another --out, or ") as error:
        write_synthetic(tmp_path, SMALL, processes=1)
    assert str(error.value).isprintable()
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("where", ["train", "train/0000000", "train/0000000/pc1.npy"])
def test_link_is_not_followed_out_of_the_folder(where, whole, tmp_path):
    folder, elsewhere = tmp_path / "scenes", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / where).parent.mkdir(parents=True)
    (folder / "synthetic.json.partial").write_bytes((whole / "synthetic.json").read_bytes())
    (folder / where).symlink_to(elsewhere)
    with pytest.raises(UsageError, match="not part of these synthetic scenes"):
        write_synthetic(folder, SMALL, processes=1)
    assert not list(elsewhere.iterdir())


def test_second_writer_is_refused(tmp_path):
    with only_writer(tmp_path), pytest.raises(BusyError, match="in use by another process"):
        write_synthetic(tmp_path, SMALL, processes=1)
    assert not list(tmp_path.iterdir())


def test_file_in_place_of_the_folder_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DiskError, match="is a file; a folder is needed"):
        write_synthetic(tmp_path / "file", SMALL, processes=1)


# Force


def half_written(folder, options=SMALL):
    """What a killed run leaves: three scenes, and a fourth without its second cloud."""

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(folder, options, processes=1, progress=stop)
    (folder / "train/0000003/pc2.npy").unlink()
    (folder / "train/0000003/.bpfn-tmp-abc").write_bytes(b"half")
    return folder


@pytest.mark.parametrize(
    ("state", "other"),
    [
        ("finished", {"seed": 4}),
        ("unfinished", {"train": 7, "val": 3}),
        ("just finished", {"height": 36}),
        ("damaged record", {"seed": 4}),
    ],
)
def test_force_replaces_scenes_of_other_options(state, other, whole, tmp_path):
    folder, options = tmp_path / "scenes", replace(SMALL, **other)
    if state == "unfinished":
        half_written(folder, options)
    else:
        write_synthetic(folder, options, processes=1)
    if state == "just finished":
        (folder / "synthetic.json.partial").write_bytes((folder / "synthetic.json").read_bytes())
    if state == "damaged record":
        (folder / "synthetic.json").write_bytes(b"{")
    write_synthetic(folder, SMALL, processes=1, force=True)
    assert files_of(folder) == files_of(whole)
    assert {path.name for path in (folder / "train").iterdir()} == {f"{index:07d}" for index in range(5)}


def test_force_on_an_unfinished_run_of_the_same_options_ends_with_the_same_scenes(whole, tmp_path):
    write_synthetic(half_written(tmp_path / "scenes"), SMALL, processes=1, force=True)
    assert files_of(tmp_path / "scenes") == files_of(whole)


def test_force_that_was_killed_is_completed_by_repeating_it(whole, tmp_path):
    folder = tmp_path / "scenes"
    write_synthetic(folder, replace(SMALL, seed=4), processes=1)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(folder, SMALL, processes=1, progress=stop, force=True)
    assert not is_synthetic(folder)
    write_synthetic(folder, SMALL, processes=1)
    assert files_of(folder) == files_of(whole)


def test_force_leaves_a_finished_folder_of_the_same_options_alone(whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in [whole, *whole.rglob("*")]}
    monkeypatch.setattr(synthetic, "render_scene", None)
    write_synthetic(whole, SMALL, processes=1, force=True)
    assert before == {path: path.stat().st_mtime_ns for path in [whole, *whole.rglob("*")]}


@pytest.mark.parametrize("name", ["notes.txt", "train/0000000/pc1.npy", "synthetic.json.old"])
def test_force_keeps_a_folder_that_is_no_synthetic_one(name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match="not part of these synthetic scenes"):
        write_synthetic(tmp_path, SMALL, processes=1, force=True)
    assert files_of(tmp_path) == {name: b"mine"}


FOREIGN = ["notes.txt", "train/notes.txt", "train/0000001/notes.txt", "train/mine/pc1.npy", "val/0000000/pc1.npy/a"]


@pytest.mark.parametrize("name", FOREIGN)
def test_force_refuses_foreign_files_among_scenes_and_removes_nothing(name, tmp_path):
    folder = half_written(tmp_path)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"mine")
    before = files_of(folder)
    with pytest.raises(UsageError, match="not part of these synthetic scenes"):
        write_synthetic(folder, replace(SMALL, seed=4), processes=1, force=True)
    assert files_of(folder) == before


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("finished", [False, True])
def test_force_never_removes_a_foreign_file(name, finished, tmp_path):
    folder = half_written(tmp_path)
    if finished:
        (folder / "synthetic.json.partial").rename(folder / "synthetic.json")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"mine")
    with pytest.raises((UsageError, DiskError)) as error:
        write_synthetic(folder, replace(SMALL, seed=4), processes=1, force=True)
    assert str(error.value).isprintable()
    assert (folder / name).read_bytes() == b"mine"


@pytest.mark.parametrize("where", ["train", "train/0000000"])
def test_force_removes_nothing_behind_a_link(where, whole, tmp_path):
    folder, elsewhere = tmp_path / "scenes", tmp_path / "elsewhere"
    (elsewhere / "0000000").mkdir(parents=True)
    for cloud in (elsewhere / "pc1.npy", elsewhere / "0000000" / "pc1.npy"):
        cloud.write_bytes(b"mine")
    (folder / where).parent.mkdir(parents=True)
    (folder / where).symlink_to(elsewhere)
    (folder / "synthetic.json.partial").write_bytes((whole / "synthetic.json").read_bytes())
    with pytest.raises(UsageError, match="not part of these synthetic scenes"):
        write_synthetic(folder, replace(SMALL, seed=4), processes=1, force=True)
    assert files_of(elsewhere) == {"pc1.npy": b"mine", "0000000/pc1.npy": b"mine"}


def test_force_waits_for_no_other_writer(tmp_path):
    before = files_of(half_written(tmp_path))
    with only_writer(tmp_path), pytest.raises(BusyError, match="in use by another process"):
        write_synthetic(tmp_path, replace(SMALL, seed=4), processes=1, force=True)
    assert files_of(tmp_path) == before
