# SPDX-License-Identifier: MIT
"""The `bpfn` command, as a user types it: in this process, or launched as the installed program."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from bpfn_cli.cli.main import run

BPFN = Path(sys.executable).with_name("bpfn")


@dataclass(frozen=True)
class Result:
    """What a finished command left, with the attribute names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def bpfn(*arguments: object, cwd: Path, **environment: str) -> Result:
    """Run a command in this process and in the folder `cwd`; `BPFN*` variables are those of `environment` alone."""
    words = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        _in_folder(cwd),
        mock.patch.dict(os.environ, clean_environment(environment), clear=True),
        mock.patch.object(sys, "argv", ["bpfn", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = run(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    return Result(code, out.getvalue(), err.getvalue())


def launched(
    *arguments: object, cwd: Path, seconds: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own, which costs a second or more: for what needs a real one."""
    return subprocess.run(
        [BPFN, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def clean_environment(changes: dict[str, str]) -> dict[str, str]:
    """This environment without `BPFN*` variables, and with `changes`."""
    return {key: value for key, value in os.environ.items() if not key.startswith("BPFN")} | changes


def succeeded(result: Result) -> Result:
    """The same result, after a check that the exit code is 0."""
    assert result.returncode == 0, result.stderr
    return result


def refused(result: Result | subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Check that a command ended with `code` and one line on stderr that has `words`, without a traceback."""
    assert result.returncode == code, (result.returncode, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert "Traceback" not in result.stderr
    assert lines[-1].startswith("bpfn: ")
    assert sum(line.startswith("bpfn: ") for line in lines) == 1
    for word in words:
        assert word in lines[-1], lines[-1]


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
