# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import tiny_network

from bpfn_cli.files import TEMPORARY_PREFIX
from bpfn_cli.runs.checkpoints import Checkpoints


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_save_syncs_a_checkpoint_before_it_is_renamed(tmp_path: Path) -> None:
    """Killing a process cannot simulate a power cut; the order of the system calls is what protects from one."""
    script = (
        "from pathlib import Path; from tiny_world import tiny_network;"
        "from bpfn_cli.runs.checkpoints import Checkpoints;"
        f"Checkpoints(Path({str(tmp_path)!r})).save(1, tiny_network(), {{}})"
    )
    trace = tmp_path / "trace"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [
            "strace",
            "-f",
            "-y",
            "-e",
            "trace=write,fsync,rename,renameat,renameat2",
            "-o",
            trace,
            sys.executable,
            "-c",
            script,
        ],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    calls = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if str(tmp_path) in line]
    kinds = [call.partition("(")[0] for call in calls if "step-" in call or TEMPORARY_PREFIX in call or "fsync" in call]
    order = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    assert order[:4] == ["write", "fsync", "rename", "fsync"]


def test_checkpoints_that_cannot_be_removed_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path, lambda number: number % 4 == 0)
    for number in range(1, 8):
        kept.save(number, tiny_network(), {}, best=2 if number >= 2 else None)
    assert kept.numbers() == [7, 6, 4, 2]  # the newest two, each fourth, the best
    assert (tmp_path / "best.safetensors").readlink() == Path("step-00000002.safetensors")
    assert (tmp_path / "last.safetensors").readlink() == Path("step-00000007.safetensors")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EPERM, "x")

    monkeypatch.setattr(Path, "unlink", refuse)
    kept.save(9, tiny_network(), {}, best=2)
    assert kept.numbers() == [9, 7, 6, 4, 2]
