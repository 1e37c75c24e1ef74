# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bpfn_cli.errors import DiskError, OutOfMemoryError, UsageError
from bpfn_cli.parallel import Shard, map_in_processes


def process_of(number: int) -> tuple[int, int]:
    return number, os.getpid()


def killed_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refused_at_two(number: int) -> int:
    if number == 2:
        raise DiskError("no space")
    return number


def test_results_come_in_order_from_this_process_or_others():
    here = list(map_in_processes(process_of, range(5), 1))
    assert here == [(number, os.getpid()) for number in range(5)]
    there = list(map_in_processes(process_of, range(5), 2))
    assert [number for number, _ in there] == list(range(5))
    assert os.getpid() not in {process for _, process in there}


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_ends_the_work_and_keeps_its_kind(processes):
    with pytest.raises(DiskError, match="no space"):
        list(map_in_processes(refused_at_two, range(5), processes))


def test_a_killed_worker_is_a_memory_error():
    with pytest.raises(OutOfMemoryError, match="fewer processes"):
        list(map_in_processes(killed_at_two, range(5), 2))


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from bpfn_cli.parallel import map_in_processes\n"
        "def work(number):\n"
        f"    Path({str(tmp_path)!r}, f'{{os.getpid()}}.worker').touch()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(map_in_processes(work, [1, 2], 2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        assert until(lambda: len(list(tmp_path.glob("*.worker"))) == 2, seconds=30)
    finally:
        parent.kill()
        parent.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.worker")]
    assert until(lambda: not any(map(is_running, workers)), seconds=10)


def until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie waits only for someone to ask


def test_shard_is_every_nth_item_from_the_ith():
    shards = [Shard.parse(f"{index}/3") for index in (1, 2, 3)]
    assert shards[1] == Shard(2, 3)
    assert [list(shard.of(range(7))) for shard in shards] == [[0, 3, 6], [1, 4], [2, 5]]
    assert Shard() == Shard.parse("1/1")


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "-1/2", "1/2/3", "a/b", "1/0", "٣/٨", "1/1234567"])
def test_shard_refuses_other_text(text):
    with pytest.raises(UsageError, match="use I/N with I from 1 to N, such as 3/8"):
        Shard.parse(text)
