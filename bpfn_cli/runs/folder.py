# SPDX-License-Identifier: MIT
"""A run folder: everything one training leaves behind, each file written so that a kill leaves it whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bpfn_cli
from bpfn_cli.distributed import from_main, is_main, size
from bpfn_cli.errors import BpfnError, BusyError, DataError, DiskError, Interrupted, UsageError, printable
from bpfn_cli.files import (
    TEMPORARY_PREFIX,
    disk_errors,
    explain,
    make_folder,
    remove_temporaries,
    sha256_of,
    sync_folder,
    write_atomic,
    write_json,
)
from bpfn_cli.locks import is_held, only_holder
from bpfn_cli.models.checkpoint import build_from, checkpoint_bytes
from bpfn_cli.runs.checkpoints import Checkpoints
from bpfn_cli.runs.loggers import Observer

FORMAT = 1
LOCK, METRICS = ".lock", "metrics.jsonl"
CPU = torch.device("cpu")
STUDENT = "student.safetensors"
LATEST = "latest"
MOST_OF_A_NAME = 999
_UNFINISHED = re.compile(re.escape(TEMPORARY_PREFIX) + "[0-9a-f]{16}")


class RunFolder:
    """`runs/NAME/`: what one training leaves behind.

    `config.yaml` (resolved recipe), `command.txt`, `run.json` (state, versions, data and teacher), `metrics.jsonl` (a
    line an epoch), `train.log`, `checkpoints/` (see `Checkpoints`), `student.safetensors` (what one deploys),
    `evaluations/*.json`, `summary.json`, `tb/`; and `runs/latest` points to it.

    Attributes: about: what run.json says.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = path
        self.about = about
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.result: dict[str, Any] | None = None  # of the last evaluation
        self.observers: list[Observer] = []
        self._is_held = False

    @classmethod
    def create(
        cls,
        runs: Path,
        name: str,
        *,
        config: str,
        command: str,
        about: dict[str, Any],
        device: torch.device = CPU,
        is_only: bool = False,
    ) -> RunFolder:
        """Make a new folder `runs/NAME` (with a number behind it if taken, unless it `is_only`).

        Raises: UsageError: `name` is no plain folder name. BusyError: it is taken, and is the only one. DiskError.
        """
        check_run_name(name)
        known = {"format": FORMAT, "name": name, "state": "running", "reason": None, **about}
        known |= {"started": _now(), "finished": None, "versions": versions(device), "code": code_state()}

        def write(folder: Path, name: str) -> None:
            for below in ("checkpoints", "evaluations"):
                make_folder(folder / below)
            write_atomic(folder / "config.yaml", config.encode())
            write_atomic(folder / "command.txt", f"{printable(command)}\n".encode())
            write_json(folder / "run.json", known | {"name": name})

        path = from_main(lambda: _new_folder(make_folder(runs), name, write, 1 if is_only else MOST_OF_A_NAME))
        return cls(path, known | {"name": path.name})

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A folder that was made before. Raises: UsageError: it is none. DataError: its run.json is damaged."""
        path = path.resolve() if path.is_symlink() else path  # `latest` will point elsewhere one day
        return cls(path, from_main(lambda: read_about(path)))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: one process works on it at a time. Whoever holds it already may do so again.

        Raises: BusyError: another process does; says which.
        """
        if self._is_held:
            yield
            return
        with contextlib.ExitStack() as held:
            from_main(lambda: held.enter_context(only_holder(self.path / LOCK)))
            self._is_held = True
            try:
                self.about = RunFolder.open(self.path).about  # another may have worked on it since
                from_main(self._sweep)
                yield
            finally:
                self._is_held = False

    def _sweep(self) -> None:
        remove_temporaries(self.path)
        if (self.path / "evaluations").is_dir():  # where `bpfn eval` may be writing
            remove_temporaries(self.path / "evaluations", seconds=60)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Record how the work in the block ended: finished, interrupted or failed, with the reason."""
        try:
            yield
        except Interrupted as error:
            self._end("interrupted", error.reason)
            raise error.resumed_by(f"bpfn resume {shlex.quote(printable(self.path))}") from None
        except (KeyboardInterrupt, SystemExit):
            self._end("interrupted", "stopped by a signal")
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, BpfnError) else f"{type(error).__name__}: {error}"
            self._end("failed", printable(reason), failed_by=type(error).__name__)
            raise
        self.about |= {"state": "finished", "reason": None, "finished": _now()}
        # First, so that whatever says that it is finished has it.
        from_main(lambda: write_json(self.path / "summary.json", {**self.about, "result": self.result}))
        self.record()
        self.note("finished")

    def record(self, **changes: Any) -> None:
        """Change entries of run.json."""
        self.about |= changes
        from_main(self._write_about)

    def _write_about(self) -> None:
        write_json(self.path / "run.json", self.about)

    def log_metrics(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and tell the observers."""
        from_main(lambda: self._append(values))

    def _append(self, values: dict[str, Any]) -> None:
        path, line = self.path / METRICS, json.dumps(values, allow_nan=False)
        with disk_errors(path), path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        for observer in self.observers:
            observer.epoch(values)

    def trim_metrics(self, epochs: int) -> None:
        """Leave the lines of the first `epochs` epochs in metrics.jsonl: what a killed process wrote after its last
        checkpoint, or only in part, is written again."""
        from_main(lambda: self._trim(epochs))

    def _trim(self, epochs: int) -> None:
        path = self.path / METRICS
        if not path.exists():
            return
        with disk_errors(path):
            lines = path.read_bytes().decode(errors="replace").splitlines()
        kept = [line for line in lines if 0 < _epoch_of(line) <= epochs]
        if kept != lines:
            write_atomic(path, "".join(f"{line}\n" for line in kept).encode())

    def note(self, text: str) -> None:
        """Append a line with the time to train.log; a full disk is no reason to end a training here."""
        if not is_main():
            return
        with contextlib.suppress(OSError), (self.path / "train.log").open("a", encoding="utf-8") as stream:
            stream.write(f"{_now()} {printable(text)}\n")

    def deploy(self, number: int) -> Path:
        """Write the weights of a checkpoint to `student.safetensors`. Raises: CheckpointError, DiskError."""
        path = self.path / STUDENT

        def write() -> None:
            found = self.checkpoints.read(number)
            write_atomic(path, checkpoint_bytes(build_from(found.weights), found.metadata))

        from_main(write)
        return path

    def write_evaluation(self, name: str, result: dict[str, Any]) -> Path:
        """Write `evaluations/NAME`."""
        self.result = result
        path = self.path / "evaluations" / name
        from_main(lambda: write_json(path, result))
        return path

    def point_latest(self) -> None:
        """Let `runs/latest` point here; a convenience, so a file system without links is no error."""
        if not is_main():
            return
        runs, name = self.path.parent, self.path.name
        temporary = runs / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            temporary.symlink_to(name)
            if (runs / LATEST).is_symlink() or not (runs / LATEST).exists():
                temporary.replace(runs / LATEST)
            temporary.unlink(missing_ok=True)

    def _end(self, state: str, reason: str | None, **more: str) -> None:
        # The error that ended the run is the one to show. The other processes may have ended already, or wait in vain.
        self.about |= {"state": state, "reason": reason, "finished": _now(), **more}
        self.note(f"{state}: {reason}")
        if is_main():
            with contextlib.suppress(DiskError):
                self._write_about()


def is_busy(path: Path) -> bool:
    """Whether a process works on a run folder."""
    return is_held(path / LOCK)


def _epoch_of(line: str) -> int:
    """The epoch that a line of metrics.jsonl is of; 0: it is damaged."""
    try:
        epoch = json.loads(line)["epoch"]
        return epoch if isinstance(epoch, int) else 0
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


def check_run_name(name: str) -> None:
    """Raises: UsageError: not the name of a folder inside another, or one that is taken."""
    is_plain = name == Path(name).name and not name.startswith((".", "-")) and name.isprintable()
    if not name or not is_plain or name == LATEST or len(name.encode()) > 200:
        raise UsageError(f"--name {printable(name)}: give a plain folder name, such as student-1")


def versions(device: torch.device) -> dict[str, Any]:
    """What the numbers of a run depend on beside its recipe."""
    return {
        "device": device.type,
        "bpfn": bpfn_cli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": size(),
    }


def code_state() -> dict[str, Any]:
    """Where the code is in git: bpfn's, if it runs from a clone, and that of the folder of the command."""
    package = Path(bpfn_cli.__file__).parent
    return {"bpfn": git_state(package) if _git(package, "ls-files", "__init__.py") else None, "here": git_state(Path())}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of a folder, and whether tracked files have been changed since; None: it is in no repository."""
    lines = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return {"commit": commit, "changed": any(not line.startswith("#") for line in lines)} if commit else None


def _git(folder: Path, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""


def read_about(folder: Path) -> dict[str, Any]:
    """What a run's run.json says. Raises: UsageError: there is none. DataError: it is damaged."""
    file = folder / "run.json"
    if not file.is_file():
        raise UsageError(f"{printable(folder)}: no folder of a training (it has no run.json); `bpfn runs` lists them")
    with disk_errors(file):
        text = file.read_bytes()
    try:
        about = json.loads(text)
        if about["format"] != FORMAT or not isinstance(about["state"], str):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{printable(file)}: damaged, or of another bpfn; restore it") from None
    return about


def run_folders(runs: Path) -> list[Path]:
    """Folders of trainings below `runs`, readable or not, by name."""
    folders = [path.parent for path in sorted(runs.glob("*/run.json"))] if runs.is_dir() else []
    return [folder for folder in folders if not folder.is_symlink() and not folder.name.startswith(".")]


def find_runs(runs: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Readable runs below `runs` and what their run.json says, oldest first."""
    found = []
    for folder in run_folders(runs):
        with contextlib.suppress(BpfnError):
            found.append((folder, read_about(folder)))
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


def _new_folder(runs: Path, name: str, write: Callable[[Path, str], None], most: int) -> Path:
    """A folder that appears with all that `write` puts into it, or not at all. most: of this name."""
    _sweep(runs)
    temporary = runs / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        temporary.mkdir()
    except OSError as error:
        raise DiskError(f"{printable(runs / name)}: {explain(error)}") from None
    try:
        for number in range(1, most + 1):
            path = runs / (name if number == 1 else f"{name}-{number}")
            if os.path.lexists(path):
                continue
            write(temporary, path.name)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    continue  # another was faster
                raise DiskError(f"{printable(path)}: {explain(error)}") from None
            sync_folder(runs)
            return path
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if most == 1:
        raise BusyError(f"{printable(runs / name)}: another process has just begun this run; repeat to go on with it")
    raise DiskError(f"{printable(runs / name)}: {most:,} runs of this name exist; choose another --name")


def _sweep(runs: Path) -> None:
    """Remove what killed processes left beside the runs, unless one may be at it: making a folder takes moments."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(runs)):
            if _UNFINISHED.fullmatch(entry.name) and time.time() - entry.stat(follow_symlinks=False).st_mtime > 3600:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
