# SPDX-License-Identifier: MIT
"""Progress on a terminal, while results go to a file, and after the terminal was closed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WORK = """
import sys
from bpfn_cli.cli.console import ConsoleProgress, echo
with ConsoleProgress().bar("drawing") as bar:
    for done in range(3):
        echo(f"figures {done}")
        bar(done + 1, 3)
        sys.stdin.readline()
echo("done")
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo terminals")
@pytest.mark.parametrize("is_closed", [False, True])
def test_results_reach_a_file_while_a_bar_is_shown(is_closed: bool) -> None:
    terminal, stderr = os.openpty()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WORK], **pipes, stderr=stderr, text=True) as work:  # type: ignore[call-overload]
        os.close(stderr)
        shown = ""
        while "drawing" not in shown:
            shown += os.read(terminal, 10_000).decode()
        if is_closed:
            os.close(terminal)
        printed, _ = work.communicate("\n\n\n", timeout=60)
    assert (work.returncode, printed) == (0, "figures 0\nfigures 1\nfigures 2\ndone\n")
    if not is_closed:
        os.close(terminal)
