# SPDX-License-Identifier: MIT
"""What a run records about the software it ran with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bpfn_cli
from bpfn_cli.distributed import size
from bpfn_cli.runs.record import Versions


def current_versions(device: torch.device) -> Versions:
    """Versions, device type, threads and processes of this process."""
    return Versions(
        device=device.type,
        bpfn=bpfn_cli.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        processes=size(),
    )


def code_state() -> dict[str, Any]:
    """Git state of bpfn, if it runs from a clone, and of the current folder."""
    package = Path(bpfn_cli.__file__).parent
    return {"bpfn": git_state(package) if _git(package, "ls-files", "__init__.py") else None, "here": git_state(Path())}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a folder, and whether tracked files differ from it; None: not in a repository."""
    lines = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "changed": any(not line.startswith("#") for line in lines)} if commit else None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
