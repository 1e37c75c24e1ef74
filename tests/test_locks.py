# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from bpfn_cli import locks
from bpfn_cli.errors import BpfnWarning, BusyError, DiskError
from bpfn_cli.locks import is_held, only_holder, only_writer


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path), pytest.raises(BusyError, match="another process"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


def test_shared_locks_of_a_folder_exclude_only_writers(tmp_path):
    shared = only_writer(tmp_path, shared=True), only_writer(tmp_path, shared=True)
    with shared[0], shared[1], pytest.raises(BusyError), only_writer(tmp_path):
        pass
    assert locks.describe() == "yes"


def test_a_folder_that_cannot_be_opened_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError), only_writer(tmp_path / "missing"):
        pass


def test_without_file_locks_the_work_goes_on_with_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    said = pytest.warns(BpfnWarning, match="no file locks: do not run two commands on one folder")
    with said, only_writer(tmp_path), only_writer(tmp_path):
        pass
    with pytest.warns(BpfnWarning), only_holder(tmp_path / "lock"):
        assert not is_held(tmp_path / "lock")
        assert not is_held(tmp_path / "no lock")
        assert (tmp_path / "lock").read_text().startswith("process ")
    assert locks.describe() == "none, so do not run two commands on one folder"
