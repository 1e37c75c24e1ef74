# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bpfn_cli.errors import DiskError, UsageError
from bpfn_cli.files import (
    TEMPORARY_PREFIX,
    claim_output,
    claim_outputs,
    disk_errors,
    expanded,
    explain,
    made_folder,
    make_folder,
    remove_temporaries,
    sha256_of,
    write_atomic,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_whole_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"a long first content")
    write_atomic(path, b"short")
    assert path.read_bytes() == b"short"
    assert names(tmp_path) == ["a.bin"]


def test_written_file_has_the_usual_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_threads_write_with_the_mode_of_the_umask_and_leave_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = os.umask(0o077)
    try:

        def refuse(_: int) -> int:
            raise AssertionError("another thread would write with the umask of this moment")

        monkeypatch.setattr(os, "umask", refuse)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: write_atomic(tmp_path / f"{number % 50}", b"x" * number), range(200)))
    finally:
        monkeypatch.undo()
        assert os.umask(old) == 0o077
    assert names(tmp_path) == sorted(str(number) for number in range(50))
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_write_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        done.append("sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        assert self.parent == target.parent
        assert self.read_bytes() == b"new"
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    write_atomic(tmp_path / "a", b"new")
    assert done == ["sync file", "rename", "sync folder"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "no space left"), (errno.EIO, "Input/output error"), (errno.EDQUOT, "quota")]
)
def test_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, advice: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(DiskError, match=advice) as error:
        write_atomic(path, b"new")
    assert str(path) in str(error.value)
    assert error.value.exit_code == 5
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_interrupted_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_write_to_a_folder_or_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "a", tmp_path / "none" / "a", tmp_path / ("x" * 300)):
        with pytest.raises(DiskError) as error:
            write_atomic(path, b"")
        assert "\n" not in str(error.value)
    assert names(tmp_path) == ["file", "folder"]


def test_claimed_output_gets_its_folder_and_nothing_else(tmp_path: Path) -> None:
    for force in (False, True):
        claim_output(tmp_path / "a" / "b" / "flow.npy", force=force)
    assert names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_claim_of_what_exists_needs_force(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "flow.npy"
    path.write_bytes(b"old") if kind == "file" else path.symlink_to("gone")
    with pytest.raises(DiskError, match=r"flow\.npy: exists; choose another --out, or --force to overwrite it"):
        claim_output(path, force=False)
    claim_output(path, force=True)
    assert path.is_symlink() or path.read_bytes() == b"old"  # replaced only when the result is there
    assert names(tmp_path) == ["flow.npy"]


@pytest.mark.parametrize("force", [False, True])
def test_claim_refuses_what_can_never_be_written(tmp_path: Path, force: bool) -> None:
    (tmp_path / "folder\x1b").mkdir()
    with pytest.raises(DiskError, match=r"folder\\x1b: is a folder; give a file name"):
        claim_output(tmp_path / "folder\x1b", force=force)
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="is a file; a folder is needed"):
        claim_output(tmp_path / "file" / "flow.npy", force=force)


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
def test_claim_refuses_to_replace_an_input(tmp_path: Path, link: Callable[[Path, Path], None] | None) -> None:
    source, out = tmp_path / "in.npy", tmp_path / ("in.npy" if link is None else "out.npy")
    source.write_bytes(b"mine")
    if link is not None:
        link(out, source)
    with pytest.raises(UsageError, match=f"--out {out}: is also an input; choose another"):
        claim_output(out, force=True, inputs=[None, tmp_path / "none", source])
    other = tmp_path / "other.npy"
    other.write_bytes(b"old")
    claim_output(other, force=True, inputs=[None, tmp_path / "none", source])


def test_claim_refuses_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(DiskError, match="no permission"):
        claim_output(tmp_path / "flow.npy", force=False)


def test_temporaries_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "folder"
    (folder / f"{TEMPORARY_PREFIX}a-folder").mkdir(parents=True)
    (folder / "below").mkdir()
    for path in (f"{TEMPORARY_PREFIX}1", f"{TEMPORARY_PREFIX}2", "below/.bpfn-tmp-3", ".bpfn", "a.bpfn-tmp-4"):
        (folder / path).write_bytes(b"half")
    (folder / f"{TEMPORARY_PREFIX}link").symlink_to(outside)
    remove_temporaries(folder)
    assert names(folder) == [".bpfn", f"{TEMPORARY_PREFIX}a-folder", "a.bpfn-tmp-4", "below"]
    assert names(folder / "below") == [".bpfn-tmp-3"]
    assert outside.read_bytes() == b"mine"
    with pytest.raises(DiskError, match="none"):
        remove_temporaries(tmp_path / "none")


def test_claim_removes_what_killed_writers_left_there_a_while_ago(tmp_path: Path) -> None:
    old, fresh = (tmp_path / f"{TEMPORARY_PREFIX}{name}" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    claim_output(tmp_path / "a.safetensors", force=False)
    assert names(tmp_path) == [fresh.name]
    os.utime(fresh, (0, 0))
    claim_outputs(tmp_path, ["b"], force=False, inputs=[])
    assert names(tmp_path) == []


def test_made_folder_goes_if_the_work_fails_and_it_is_empty(tmp_path: Path) -> None:
    for content in (False, True):
        with pytest.raises(KeyError), made_folder(tmp_path / "a" / "b"):
            (tmp_path / "a" / "c").touch() if content else None
            raise KeyError
        assert names(tmp_path) == ["a"] * content
    with made_folder(tmp_path / "a" / "b"):
        pass
    assert names(tmp_path / "a") == ["b", "c"]


@pytest.mark.parametrize("form", ["~/x", "$HOME/x", "${HOME}/x"])
def test_home_and_variables_are_expanded_unless_the_path_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert expanded(form) == expanded(Path(form)) == tmp_path / "home" / "x"
    Path(form).parent.mkdir(parents=True)
    Path(form).touch()
    assert expanded(form) == Path(form)


def test_path_without_its_home_or_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(UsageError, match=r"\$NOWHERE/x: the environment variable NOWHERE is not set"):
        expanded("$NOWHERE/x")
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)  # no HOME and no passwd entry
    with pytest.raises(UsageError, match="~/x: this user has no home folder; write the whole path"):
        expanded("~/x")
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert expanded("price in $") == Path("price in $")


def test_killed_write_leaves_what_remove_temporaries_finds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    if (child := os.fork()) == 0:
        try:
            os.fsync = lambda _: os._exit(9)
            write_atomic(tmp_path / "a", b"new")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(names(tmp_path)) == 2
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_json_is_indented_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1]})
    assert path.read_text() == '{\n  "a": [\n    1\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert '"a": [' in path.read_text()


def test_make_folder_makes_parents_and_refuses_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "a ü" / "b"
    assert make_folder(folder) == folder
    assert make_folder(folder).is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="is a file; a folder is needed"):
        make_folder(tmp_path / "file")
    with pytest.raises(DiskError, match="a parent is a file, not a folder"):
        make_folder(tmp_path / "file" / "below")


def test_make_folder_refuses_one_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(DiskError, match="no permission"):
        make_folder(tmp_path / "a")


def test_disk_errors_escape_names_and_explain_everything() -> None:
    with pytest.raises(DiskError) as error, disk_errors(Path("a\x1b\nb")):
        raise OSError(errno.EROFS, "x")
    assert str(error.value) == "a\\x1b\\nb: read-only file system; choose another path"
    assert explain(OSError("odd")) == "odd"


def test_sha256_of_a_file_longer_than_a_block(tmp_path: Path) -> None:
    content = b"0123456789abcdef" * 70_000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
