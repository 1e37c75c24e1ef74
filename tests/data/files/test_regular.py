# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from npy_files import POINTS, npy, refusal, written

from bpfn_cli.data.files.points import read_points
from bpfn_cli.errors import DataError, DiskError
from bpfn_cli.files import read_file


def test_missing_file_is_named(tmp_path):
    assert "no such file" in refusal(tmp_path / "pc2.npy")
    assert "no such file" in refusal(written(tmp_path, b"") / "pc2.npy")


def test_folder_fifo_socket_and_device_are_refused_at_once(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "fifo.npy")
    assert "folder" in refusal(tmp_path / "folder.npy")
    assert "pipe" in refusal(tmp_path / "fifo.npy")
    assert "device" in refusal(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.npy"))
        assert "socket" in refusal(tmp_path / "s.npy")


def test_fifo_put_in_place_after_the_check_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "fifo.npy"
    os.mkfifo(path)
    regular = written(tmp_path, b"", "regular").stat()
    monkeypatch.setattr(Path, "stat", lambda self, **_: regular)
    assert "pipe" in refusal(path)


def test_links_are_followed_and_loops_refused(tmp_path):
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    (tmp_path / "link.npy").symlink_to(written(tmp_path, npy(POINTS)))
    assert "no such file" in refusal(tmp_path / "loop.npy")
    assert read_points(tmp_path / "link.npy").tolist() == POINTS.tolist()


def test_impossible_name_is_refused():
    with pytest.raises(DataError, match="not a valid file name"):
        read_file(Path("a\0b"))
    with pytest.raises(DataError, match="no such file"):
        read_file(Path("x" * 5000))


@pytest.mark.parametrize(("number", "word"), [(errno.EACCES, "permission"), (errno.EIO, "error")])
def test_refusals_of_the_system_are_disk_errors(tmp_path, monkeypatch, number, word):
    path = written(tmp_path, npy(POINTS))

    def refuse(*_args):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refuse)
    assert word in refusal(path, kind=DiskError)


def test_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, npy(POINTS))
    fstat = os.fstat

    def shrink_after(descriptor):
        status = fstat(descriptor)
        os.truncate(path, 100)
        return status

    monkeypatch.setattr(os, "fstat", shrink_after)
    assert "shorter" in refusal(path)


def test_file_of_terabytes_is_refused_unread(tmp_path):
    path = tmp_path / "sparse.npy"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    assert "1099511627776 bytes" in refusal(path)


def test_control_characters_in_names_are_escaped(tmp_path):
    with pytest.raises(DataError) as caught:
        read_points(written(tmp_path, b"", "a\x1b[31m\nb.npy"))
    assert "a\\x1b[31m\\nb.npy" in str(caught.value)
    assert str(caught.value).isprintable()


def test_names_with_spaces_and_accents_work(tmp_path):
    assert len(read_points(written(tmp_path, npy(POINTS), "-où est la clé.npy"))) == 4
