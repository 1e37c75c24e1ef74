# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from bpfn_cli.errors import BusyError, DiskError
from bpfn_cli.locks import only_writer


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path), pytest.raises(BusyError, match="another process"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


def test_a_folder_that_cannot_be_opened_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError), only_writer(tmp_path / "missing"):
        pass
