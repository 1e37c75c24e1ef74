# SPDX-License-Identifier: MIT
"""Quotas of control groups, as containers and batch systems set them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpfn_cli import cores

MEMBERSHIP_V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n"


def files(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def quota(tmp_path: Path, membership: str, contents: dict[str, str]) -> float | None:
    (tmp_path / "cgroup").write_text(membership)
    return cores.cpu_quota(tmp_path / "cgroup", files(tmp_path / "sys", contents))


@pytest.mark.parametrize(
    ("membership", "contents", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000", "user/cpu.max": "400000 100000"}, 4),
        ("0::/user/job\n", {"user/job/cpu.max": "800000 100000", "user/cpu.max": "400000 100000"}, 4),
        ("0::/of/the/host\n", {"cpu.max": "50000 100000"}, 0.5),  # in a container, where the path does not exist
        (MEMBERSHIP_V1, {"cpu,cpuacct/cpu.cfs_quota_us": "100000", "cpu,cpuacct/cpu.cfs_period_us": "50000"}, 2),
        (MEMBERSHIP_V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1", "cpu/docker/abc/cpu.cfs_period_us": "50000"}, None),
        (MEMBERSHIP_V1, {"cpu/docker/abc/cpu.cfs_quota_us": "3", "cpu/docker/abc/cpu.cfs_period_us": "6"}, 0.5),
        ("0::/\n", {"cpu.max": "damaged"}, None),
        ("0::/\n", {"cpu.max": "100000 0"}, None),
        ("nonsense\n", {"cpu.max": "100000 100000"}, None),
        ("4:memory:/\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_quota(tmp_path: Path, membership: str, contents: dict[str, str], expected: float | None) -> None:
    assert quota(tmp_path, membership, contents) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (0.5, 1), (1.0, 1), (2.5, 3), (64.0, 8)])
def test_usable_cores(monkeypatch: pytest.MonkeyPatch, limit: float | None, expected: int) -> None:
    monkeypatch.setattr(cores, "allowed_cores", lambda: 8)
    monkeypatch.setattr(cores, "cpu_quota", lambda: limit)
    assert cores.usable_cores() == expected


def test_threads_follow_the_quota_unless_the_user_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "allowed_cores", lambda: 8)
    monkeypatch.setattr(cores, "cpu_quota", lambda: 2.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert not cores.limit_threads() and os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores.limit_threads() and os.environ["OMP_NUM_THREADS"] == "2"


def test_torch_uses_the_limited_number_of_threads() -> None:
    code = (
        "import os, pathlib\n"
        "read = pathlib.Path.read_text\n"
        "files = {'/proc/self/cgroup': '0::/', '/sys/fs/cgroup/cpu.max': '100000 100000'}\n"
        "pathlib.Path.read_text = lambda self, *rest, **named: files.get(str(self)) or read(self, *rest, **named)\n"
        "os.sched_getaffinity = lambda process: range(4)\n"
        "import bpfn_cli, torch\n"
        "print(bpfn_cli.LIMITED, torch.get_num_threads())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.split() == ["True", "1"]
