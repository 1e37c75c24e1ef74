# SPDX-License-Identifier: MIT
"""Work in a child process that is killed before it changes a folder."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.utime"}


def killed_before_change(number: int, folder: Path, work: Callable[[], object]) -> bool:
    """Whether `work`, done in a child process, was killed before its `number`-th change of `folder`."""
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(_killer(number, folder))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _killer(number: int, folder: Path) -> Callable[[str, tuple[object, ...]], None]:
    seen = itertools.count(1)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in _CHANGES and str(folder) in str(arguments) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch
