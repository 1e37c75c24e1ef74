# SPDX-License-Identifier: MIT
"""The installed `bpfn` command, as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

BPFN = Path(sys.executable).with_name("bpfn")


def bpfn(*arguments: object, cwd: Path, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BPFN")}
    return subprocess.run(
        [BPFN, *map(str, arguments)],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The command ended with `code` and one line on stderr that has `words`; no traceback, nothing on stdout."""
    assert result.returncode == code, (result.returncode, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert "Traceback" not in result.stderr
    assert lines[-1].startswith("bpfn: ")
    assert sum(line.startswith("bpfn: ") for line in lines) == 1
    for word in words:
        assert word in lines[-1], lines[-1]
