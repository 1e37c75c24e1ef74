# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from bpfn_cli.errors import DiskError
from bpfn_cli.files import disk_errors, explain, make_folder, sha256_of, write_atomic, write_json


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
    with pytest.raises(DiskError, match="is a file where a folder is needed"):
        make_folder(tmp_path / "file")
    with pytest.raises(DiskError, match="a file stands where a folder"):
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
