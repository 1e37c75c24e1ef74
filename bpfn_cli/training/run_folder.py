# SPDX-License-Identifier: MIT
"""A run folder: everything one training leaves behind, each file written so that a kill leaves it whole."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bpfn_cli
from bpfn_cli.errors import BpfnError, DiskError, UsageError, printable
from bpfn_cli.files import disk_errors, explain, make_folder, sha256_of, write_atomic, write_json
from bpfn_cli.models import BiPointFlowNet, save_checkpoint

FORMAT = 1
STUDENT = "student.safetensors"
LATEST = "latest"


class RunFolder:
    """`runs/NAME/` while it is written.

    `config.yaml` (resolved recipe), `command.txt`, `run.json` (state, versions, data and teacher), `metrics.jsonl` (a
    line an epoch), `checkpoints/{last,best}.safetensors`, `student.safetensors` (what one deploys),
    `evaluations/*.json`, `summary.json`; and `runs/latest` points to it.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = path
        self.about = about
        self.result: dict[str, Any] | None = None  # of the last evaluation

    @classmethod
    def create(cls, runs: Path, name: str, *, config: str, command: str, about: dict[str, Any]) -> RunFolder:
        """Make a new folder `runs/NAME` (with a number behind it if taken).

        Raises: UsageError: `name` is no plain folder name. DiskError.
        """
        check_run_name(name)
        make_folder(runs)
        path = _new_folder(runs, name)
        run = cls(path, {"format": FORMAT, "name": path.name, "state": "running", "reason": None, **about})
        run.about |= {"started": _now(), "finished": None, "versions": versions()}
        for below in ("checkpoints", "evaluations"):
            make_folder(path / below)
        write_atomic(path / "config.yaml", config.encode())
        write_atomic(path / "command.txt", f"{printable(command)}\n".encode())
        run.record()
        _point_latest(runs, path.name)
        return run

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Record how the work in the block ended: finished, interrupted or failed, with the reason."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._end("interrupted", "stopped by a signal")
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, BpfnError) else f"{type(error).__name__}: {error}"
            self._end("failed", printable(reason), failed_by=type(error).__name__)
            raise
        self.record(state="finished", reason=None, finished=_now())
        write_json(self.path / "summary.json", {**self.about, "result": self.result})

    def record(self, **changes: Any) -> None:
        """Change entries of run.json."""
        self.about |= changes
        write_json(self.path / "run.json", self.about)

    def log_metrics(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        path, line = self.path / "metrics.jsonl", json.dumps(values, allow_nan=False)
        with disk_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def save(self, which: str, model: BiPointFlowNet, **metadata: Any) -> Path:
        """Write `checkpoints/{which}.safetensors`."""
        path = self.path / "checkpoints" / f"{which}.safetensors"
        save_checkpoint(path, model, run=self.path.name, **metadata)
        return path

    def deploy(self, checkpoint: Path) -> Path:
        """Copy a checkpoint to `student.safetensors`."""
        path = self.path / STUDENT
        with disk_errors(checkpoint):
            content = checkpoint.read_bytes()
        write_atomic(path, content)
        return path

    def write_evaluation(self, name: str, result: dict[str, Any]) -> Path:
        """Write `evaluations/NAME`."""
        self.result = result
        path = self.path / "evaluations" / name
        write_json(path, result)
        return path

    def _end(self, state: str, reason: str | None, **more: str) -> None:
        with contextlib.suppress(DiskError):  # the error that ended the run is the one to show
            self.record(state=state, reason=reason, finished=_now(), **more)


def check_run_name(name: str) -> None:
    """Raises: UsageError: not the name of a folder inside another, or one that is taken."""
    is_plain = name == Path(name).name and not name.startswith((".", "-")) and name.isprintable()
    if not name or not is_plain or name == LATEST or len(name.encode()) > 200:
        raise UsageError(f"--name {printable(name)}: give a plain folder name, such as student-1")


def versions() -> dict[str, Any]:
    """What the numbers of a run depend on beside its recipe."""
    return {
        "bpfn": bpfn_cli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }


def find_runs(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Readable runs below `runs`, oldest first."""
    found = []
    for path in sorted(runs.glob("*/run.json")) if runs.is_dir() else []:
        if path.parent.is_symlink():
            continue
        with contextlib.suppress(OSError, ValueError, RecursionError):
            about = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(about, dict) and about.get("format") == FORMAT:
                found.append((path.parent, about))
    return sorted(found, key=lambda run: str(run[1].get("started")))


def find_teacher(runs: Path, key: str) -> Path | None:
    """The checkpoint of the newest finished teacher with this key (see `recipe.teacher_key`)."""
    for folder, about in reversed(find_runs(runs)):
        path = folder / STUDENT
        if about.get("teacher_key") == key and about.get("state") == "finished" and path.is_file():
            return path
    return None


def latest_checkpoint(runs: Path) -> Path | None:
    """The deployed weights of the newest finished student, or of the newest teacher if there is none."""
    candidates = [(folder / STUDENT, about) for folder, about in find_runs(runs) if about.get("state") == "finished"]
    ready = [(path, about) for path, about in candidates if path.is_file()]
    ready.sort(key=lambda run: run[1].get("role") == "student")
    return ready[-1][0] if ready else None


def file_identity(path: Path) -> dict[str, str]:
    """A checkpoint's path and sha256."""
    return {"path": str(path), "sha256": sha256_of(path)}


def timestamp() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def _new_folder(runs: Path, name: str) -> Path:
    for number in range(1, 1000):
        path = runs / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise DiskError(f"{printable(path)}: {explain(error)}") from None
        return path
    raise DiskError(f"{printable(runs / name)}: a thousand runs of this name exist; choose another --name")


def _point_latest(runs: Path, name: str) -> None:
    """Let `runs/latest` point to a run; a convenience, so a file system without links is no error."""
    temporary = runs / f".{LATEST}-{os.getpid()}"
    with contextlib.suppress(OSError):
        temporary.symlink_to(name)
        if (runs / LATEST).is_symlink() or not (runs / LATEST).exists():
            temporary.replace(runs / LATEST)
        temporary.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
