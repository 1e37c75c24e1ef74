# SPDX-License-Identifier: MIT
"""A run folder: everything one training leaves behind, each file written so that a kill leaves it whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bpfn_cli import files
from bpfn_cli.distributed import from_main, is_main
from bpfn_cli.errors import BpfnError, BusyError, DiskError, Interrupted, UsageError, printable
from bpfn_cli.locks import only_holder
from bpfn_cli.losses import is_own_loss
from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.models.checkpoint import build_from, checkpoint_bytes
from bpfn_cli.models.fake_quantization import RANGES, add_quantizers, round_weights
from bpfn_cli.runs.checkpoints import Checkpoints
from bpfn_cli.runs.loggers import MetricsLogger
from bpfn_cli.runs.record import EVALUATIONS, LOCK, METRICS, RunRecord, read_record
from bpfn_cli.shipped import STUDENT

LATEST = "latest"
MOST_RUNS_OF_A_NAME = 999
_UNFINISHED = re.compile(re.escape(files.TEMPORARY_PREFIX) + "[0-9a-f]{16}")


class RunFolder:
    """`runs/NAME/`.

    `config.yaml` (resolved recipe), `command.txt`, `run.json` (`RunRecord`), `metrics.jsonl` (a line an epoch),
    `train.log`, `checkpoints/` (`Checkpoints`), `student.safetensors` (the weights to deploy), `evaluations/*.json`,
    `summary.json`, `tb/`; `runs/latest` links to the newest run.

    Attributes: result: of the last evaluation. loggers: receive the metrics of each epoch.
    """

    def __init__(self, path: Path, record: RunRecord):
        self.path, self.record = path, record
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.result: EvaluationResult | None = None
        self.loggers: list[MetricsLogger] = []
        self._is_locked = False

    @classmethod
    def create(
        cls, runs: Path, name: str, *, config: str, command: str, record: RunRecord, must_be_new: bool = False
    ) -> RunFolder:
        """Create `runs/NAME`, with a number appended if the name is taken, unless it `must_be_new`.

        Raises: UsageError: `name` is not a plain folder name. BusyError: it must be new, but is not. DiskError.
        """
        check_run_name(name)

        def write(folder: Path, name: str) -> None:
            for below in ("checkpoints", EVALUATIONS):
                files.make_folder(folder / below)
            files.write_atomic(folder / "config.yaml", config.encode())
            files.write_atomic(folder / "command.txt", f"{printable(command)}\n".encode())
            record.changed(name=name).write(folder)

        most = 1 if must_be_new else MOST_RUNS_OF_A_NAME
        path = from_main(lambda: _new_folder(files.make_folder(runs), name, write, most))
        return cls(path, record.changed(name=path.name))

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder. Raises: UsageError: it is none. DataError: its run.json is damaged."""
        path = path.resolve() if path.is_symlink() else path  # `latest` may point elsewhere later
        return cls(path, from_main(lambda: read_record(path)))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the folder, so that one process works on it at a time; may be nested. Raises: BusyError."""
        if self._is_locked:
            yield
            return
        with contextlib.ExitStack() as held:
            from_main(lambda: held.enter_context(only_holder(self.path / LOCK)))
            self._is_locked = True
            try:
                self.record = from_main(self._swept)
                yield
            finally:
                self._is_locked = False

    def _swept(self) -> RunRecord:
        """Remove what killed processes left, and read the record, which another process may have changed."""
        files.remove_temporaries(self.path)
        if (self.path / EVALUATIONS).is_dir():
            files.remove_temporaries(self.path / EVALUATIONS, seconds=60)  # `bpfn eval` may be writing there
        return read_record(self.path)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Record how the work in the block ends: finished, interrupted or failed, with the reason."""
        if self.record.state != "running":
            self.update(state="running", reason=None, finished=None, failed_by=None)
        try:
            yield
        except Interrupted as error:
            self._end("interrupted", error.reason)
            raise error.resumed_by(self._resume_command()) from None
        except (KeyboardInterrupt, SystemExit):
            self._end("interrupted", "stopped by a signal")
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, BpfnError) else f"{type(error).__name__}: {error}"
            self._end("failed", printable(reason)[:4096], failed_by=type(error).__name__)
            raise
        self.record = self.record.changed(state="finished", reason=None, finished=_now())
        # The summary comes first, so that a run marked as finished always has it.
        result = None if self.result is None else self.result.as_dict()
        summary = {**self.record.model_dump(mode="json"), "result": result}
        from_main(lambda: files.write_json(self.path / "summary.json", summary))
        self.update()
        self.log("finished")

    def _resume_command(self) -> str:
        has_code = any(is_own_loss(str(name)) for name in self.record.recipe.get("loss", ()))
        return f"bpfn resume {shlex.quote(printable(self.path))}{' --allow-code' * has_code}"

    def update(self, **changes: Any) -> None:
        """Change entries of the record and write run.json."""
        self.record = self.record.changed(**changes)
        from_main(lambda: self.record.write(self.path))

    def log_metrics(self, values: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl and pass it to the loggers."""
        path, line = self.path / METRICS, json.dumps(values, allow_nan=False)

        def append() -> None:
            with files.disk_errors(path), path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            for logger in self.loggers:
                logger.epoch(values)

        from_main(append)

    def trim_metrics(self, epochs: int) -> None:
        """Keep the lines of `epochs` epochs in metrics.jsonl; later ones, perhaps incomplete, will be written again."""
        path = self.path / METRICS

        def trim() -> None:
            with files.disk_errors(path):
                lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
            kept = [line for line in lines if 0 < _epoch_of(line) <= epochs]
            if kept != lines:
                files.write_atomic(path, "".join(f"{line}\n" for line in kept).encode())

        from_main(trim)

    def log(self, text: str) -> None:
        """Append a line with the time to train.log. A full disk does not end the training here."""
        if is_main():
            with contextlib.suppress(OSError), (self.path / "train.log").open("a", encoding="utf-8") as stream:
                stream.write(f"{_now().isoformat()} {printable(text)}\n")

    def deploy(self, number: int, **metadata: Any) -> Path:
        """Write the weights of a checkpoint to `student.safetensors`; for int8, rounded and with the learned ranges.

        Args: metadata: beside that of the checkpoint. Raises: CheckpointError, DiskError.
        """
        path = self.path / STUDENT

        def write() -> None:
            found = self.checkpoints.read(number)
            model, about = build_from(found.weights), {**found.metadata, **metadata}
            if ranges := found.state.get("strategy", {}).get(RANGES):
                add_quantizers(model)
                round_weights(model)
                about[RANGES] = {name: ends.tolist() for name, ends in ranges.items()}
            files.write_atomic(path, checkpoint_bytes(model, about))

        from_main(write)
        return path

    def write_evaluation(self, result: EvaluationResult) -> None:
        self.result = result
        from_main(lambda: files.write_json(self.path / EVALUATIONS / result.file_name, result.as_dict()))

    def link_latest(self) -> None:
        """Point `runs/latest` here, where the file system has links."""
        runs, name = self.path.parent, self.path.name
        if is_main() and ((runs / LATEST).is_symlink() or not (runs / LATEST).exists()):
            files.replace_link(runs / LATEST, name)

    def _end(self, state: str, reason: str | None, **more: str) -> None:
        # Not through `update`: the other processes may have ended already, and the first error is the one to show.
        self.record = self.record.changed(state=state, reason=reason, finished=_now(), **more)
        self.log(f"{state}: {reason}")
        if is_main():
            with contextlib.suppress(DiskError):
                self.record.write(self.path)


def check_run_name(name: str) -> None:
    """Raises: UsageError: not a plain folder name, or a reserved one."""
    is_plain = name == Path(name).name and not name.startswith((".", "-")) and name.isprintable()
    if not name or not is_plain or name in (LATEST, EVALUATIONS) or len(name.encode()) > 200:
        raise UsageError(f"--name {printable(name)}: give a plain folder name, such as student-1")


def _epoch_of(line: str) -> int:
    """The epoch of a line of metrics.jsonl; 0: the line is damaged."""
    try:
        epoch = json.loads(line)["epoch"]
        return epoch if isinstance(epoch, int) else 0
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


def _new_folder(runs: Path, name: str, write: Callable[[Path, str], None], most: int) -> Path:
    """Create a folder, one of at most `most` of this name, that appears with what `write` puts there, or not at all."""
    _sweep_unfinished(runs)
    temporary = runs / f"{files.TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with files.disk_errors(runs / name):
        temporary.mkdir()
    try:
        for number in range(1, most + 1):
            path = runs / (name if number == 1 else f"{name}-{number}")
            if not os.path.lexists(path):
                write(temporary, path.name)
                if _rename_new(temporary, path):
                    files.sync_folder(runs)
                    return path
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if most == 1:
        raise BusyError(f"{printable(runs / name)}: another process has just started this run; repeat to resume it")
    raise DiskError(f"{printable(runs / name)}: {most:,} runs have this name; choose another --name")


def _rename_new(folder: Path, path: Path) -> bool:
    """Whether the folder got its name; False: another process was faster. Raises: DiskError."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise DiskError(f"{printable(path)}: {files.explain(error)}") from None
    return True


def _sweep_unfinished(runs: Path) -> None:
    """Remove what killed processes left beside the runs an hour ago or earlier; creating a folder takes moments."""
    with contextlib.suppress(OSError):
        for path in list(runs.iterdir()):
            if _UNFINISHED.fullmatch(path.name) and time.time() - path.lstat().st_mtime > 3600:
                is_folder = path.is_dir() and not path.is_symlink()
                shutil.rmtree(path, ignore_errors=True) if is_folder else path.unlink()


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
