# SPDX-License-Identifier: MIT
"""Kills, interrupts and other processes."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from kills import killed_before_change
from scene_folders import contents, write_flyingthings3d
from subset_runs import COPY, HALF, begin, refused

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.subset.make import make_subset, verify_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import plan_subset
from bpfn_cli.errors import BusyError, DataError
from bpfn_cli.locks import only_writer


@pytest.mark.parametrize(
    ("link", "step"),
    [("copy", 3), *(pytest.param(link, 1, marks=pytest.mark.slow) for link in ("copy", "hard", "symlink"))],
)
def test_run_killed_at_any_point_completes_when_repeated_with_the_same_bytes(tmp_path, link, step):
    source = write_flyingthings3d(tmp_path / "source", train=2, val=1)
    options = SubsetOptions(0.5, link=link)
    make_subset(source, tmp_path / "whole", options)
    expected = contents(tmp_path / "whole")
    for number in itertools.count(1, step):
        out = tmp_path / f"out{number}"
        if not killed_before_change(number, out, lambda out=out: make_subset(source, out, options, processes=2)):
            break
        found = contents(out) if out.exists() else {}
        assert all(expected[key] == content for key, content in found.items() if key in expected)
        make_subset(source, out, options)
        assert contents(out) == expected
        assert verify_subset(out)
    assert number > 12


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_replacement_killed_at_any_point_leaves_the_old_or_nothing_readable(tmp_path, step):
    source = write_flyingthings3d(tmp_path / "source", train=3, val=1)
    new = SubsetOptions(0.4, seed=2, link="copy")
    make_subset(source, tmp_path / "old", COPY)
    make_subset(source, tmp_path / "new", new)
    old, expected = contents(tmp_path / "old"), contents(tmp_path / "new")
    for number in itertools.count(1, step):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"out{number}")
        if not killed_before_change(number, out, lambda out=out: make_subset(source, out, new, force=True)):
            break
        try:
            open_dataset(out, "train")
        except DataError:
            pass
        else:
            found = contents(out)
            found.pop("subset.json.partial", None)
            assert {key: found[key] for key in found if "tmp" not in key} in (old, expected)
        make_subset(source, out, new, force=True)
        assert contents(out) == expected
    assert number > 12


@pytest.mark.slow
@pytest.mark.parametrize("link", ["copy", "hard"])
def test_run_killed_10_times_completes(tmp_path, out, link):
    kill_loop(tmp_path, out, link, kills=10)


@pytest.mark.endurance
@pytest.mark.parametrize("link", ["copy", "hard", "symlink", "packed"])
def test_run_killed_100_times_completes(tmp_path, out, link):
    kill_loop(tmp_path, out, link, kills=100)


def kill_loop(tmp_path: Path, out: Path, link: str, kills: int) -> None:
    source = write_flyingthings3d(tmp_path / "source", train=120, val=20)
    options = SubsetOptions(0.5, packed=True) if link == "packed" else SubsetOptions(0.5, link=link)
    make_subset(source, tmp_path / "whole", options)
    expected = contents(tmp_path / "whole")
    generator = random.Random(0)
    killed = 0
    while killed < kills:
        if not killed_before_change(
            generator.randint(1, 6 if link == "packed" else 80),
            out,
            lambda: make_subset(source, out, options, processes=2),
        ):
            assert contents(out) == expected
            shutil.rmtree(out)
            continue
        killed += 1
        found = contents(out) if out.exists() else {}
        assert all(expected[key] == content for key, content in found.items() if key in expected)
    make_subset(source, out, options)
    assert contents(out) == expected
    assert verify_subset(out)


def test_temporary_files_of_killed_runs_are_swept(source, out):
    make_subset(source, out, HALF)
    scene = next((out / "train").iterdir())
    for folder in (out, out / "train", scene):
        (folder / ".bpfn-tmp-abc").write_text("half")
    assert make_subset(source, out, HALF).already_complete
    assert not list(out.rglob(".bpfn-tmp-*"))


def test_record_left_by_a_kill_after_the_last_write_is_removed(source, out):
    make_subset(source, out, HALF)
    (out / "subset.json.partial").write_text(json.dumps(plan_subset(source, HALF).task.document()))
    assert make_subset(source, out, HALF).already_complete
    assert not (out / "subset.json.partial").exists()


def test_unfinished_subset_is_neither_read_nor_verified(source, out, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_subset(source, out, COPY, progress=stop)
    assert not (out / "subset.json").exists()
    assert not list(out.rglob(".bpfn-tmp-*"))
    with pytest.raises(DataError, match="unfinished"):
        open_dataset(out, "train")
    with pytest.raises(DataError, match="unfinished"):
        verify_subset(out)
    make_subset(source, out, COPY)
    assert len(open_dataset(out, "train")) == 5


def test_unfinished_subset_of_other_options_is_refused(source, out):
    out.mkdir()
    (out / "subset.json.partial").write_text(json.dumps(plan_subset(source, COPY).task.document()))
    assert "link auto, not copy" in refused(DataError, source, out, HALF)
    make_subset(source, out, HALF, force=True)
    assert verify_subset(out)


def test_second_process_on_one_target_is_busy(source, out):
    held, released = threading.Event(), threading.Event()

    def hold():
        out.mkdir()
        with only_writer(out):
            held.set()
            released.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        assert str(out) in refused(BusyError, source, out, HALF)
    finally:
        released.set()
        thread.join()
    make_subset(source, out, HALF)


def test_interrupt_ends_the_command_and_leaves_no_manifest(tmp_path, out):
    source = write_flyingthings3d(tmp_path / "source", train=400, val=0)
    process = begin(source, out, "copy")
    while process.poll() is None and not (out / "train").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert b"KeyboardInterrupt" in error
    assert not (out / "subset.json").exists()
    assert not list(out.rglob(".bpfn-tmp-*"))
