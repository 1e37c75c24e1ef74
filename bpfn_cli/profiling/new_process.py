# SPDX-License-Identifier: MIT
"""Call a function in a new Python process, where nothing else has used memory or loaded code."""

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from bpfn_cli.errors import OutOfMemoryError, means_out_of_memory

T = TypeVar("T")

_CHILD = (
    "import pickle, sys; sys.path[:] = {path!r}; call, arguments = pickle.load(sys.stdin.buffer); "
    "pickle.dump(call(*arguments), sys.stdout.buffer)"
)


def in_new_process(call: Callable[..., T], *arguments: Any, too_large: str = "out of memory") -> T:
    """What `call(*arguments)` returns in a new process; `call` is a function of a module, and prints nothing.

    Raises: OutOfMemoryError: with the text of `too_large`. RuntimeError: any other error, with its traceback.
    """
    child = subprocess.run(
        [sys.executable, "-c", _CHILD.format(path=sys.path)],
        input=pickle.dumps((call, arguments)),
        capture_output=True,
        start_new_session=True,  # Ctrl-C then reaches only this process, which ends the child
        check=False,
    )
    if child.returncode == 0:
        answer: T = pickle.loads(child.stdout)
        return answer
    errors = child.stderr.decode(errors="replace")
    if child.returncode == -signal.SIGKILL or means_out_of_memory(errors):
        raise OutOfMemoryError(too_large)
    raise RuntimeError(f"measuring in a new process failed:\n{errors}")
