# SPDX-License-Identifier: MIT
"""Functions called in a new process: their answers and their errors."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch

from bpfn_cli.errors import OutOfMemoryError
from bpfn_cli.profiling.new_process import in_new_process


def process_and_sum(*numbers: int) -> tuple[int, int]:
    return os.getpid(), sum(numbers)


def lack_memory(*_: object) -> None:
    raise MemoryError


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # what the system does when memory ends


def allocate() -> None:
    torch.empty(2**50)


def fail() -> None:
    raise ValueError("a bug")


def test_answer_comes_from_another_process() -> None:
    process, total = in_new_process(process_and_sum, 1, 2)
    assert process != os.getpid() and total == 3


@pytest.mark.parametrize("call", [lack_memory, be_killed, pytest.param(allocate, marks=pytest.mark.slow)])
def test_lack_of_memory_has_the_given_message(call: Callable[[], None]) -> None:
    with pytest.raises(OutOfMemoryError, match=r"^fewer points, please$"):
        in_new_process(call, too_large="fewer points, please")


def test_other_errors_are_shown() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        in_new_process(fail)
