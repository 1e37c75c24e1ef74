# SPDX-License-Identifier: MIT
"""The processor cores that this process may use: by its affinity, and by the quota of its container."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Number of cores this process may use; half a core of a quota counts as one."""
    quota = cpu_quota()
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), math.ceil(quota)))


def allowed_cores() -> int:
    """Number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(membership: Path = Path("/proc/self/cgroup"), root: Path = CGROUPS) -> float | None:
    """Cores' worth of time that the control groups of this process allow it, versions 1 and 2; None: no limit.

    Args: membership: lists the groups as `number:controllers:path`. root: where they are mounted.
    """
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines() if line.count(":") >= 2]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in groups:
        if not controllers:
            quotas += [_quota_v2(folder) for folder in _upwards(root, path)]
        elif "cpu" in controllers.split(","):
            mounts = dict.fromkeys((root / controllers, root / "cpu"))
            quotas += [_quota_v1(folder) for mount in mounts for folder in _upwards(mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def limit_threads() -> bool:
    """Before torch is loaded: as many threads as the quota has cores, unless OMP_NUM_THREADS says otherwise.

    Returns: whether the number was limited.
    """
    limited = usable_cores() < allowed_cores() and "OMP_NUM_THREADS" not in os.environ
    if limited:
        os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    return limited


def _upwards(mount: Path, path: str) -> list[Path]:
    """The folder of a group and those of the groups around it; inside a container, only `mount` may exist."""
    folder = mount / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _quota_v2(folder: Path) -> float | None:
    numbers = _numbers(folder / "cpu.max")
    return numbers[0] / numbers[1] if len(numbers) == 2 and min(numbers) > 0 else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
    return quota[0] / period[0] if quota and period and quota[0] > 0 and period[0] > 0 else None


def _numbers(path: Path) -> list[int]:
    """The whole numbers in a file; none if there is no such file, or a word such as `max`."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
