# SPDX-License-Identifier: MIT
"""The JSON record of an output folder: `NAME.partial` while the folder is being written, then `NAME`, written last.

Both hold the settings of the run, so a killed run is completed with the same settings only.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors, read_file, write_json


@dataclass(frozen=True)
class OutputRecord:
    """The record `name` of an output folder, and the paths where it lies."""

    folder: Path
    name: str

    @property
    def finished(self) -> Path:
        return self.folder / self.name

    @property
    def partial(self) -> Path:
        return self.folder / f"{self.name}.partial"

    @property
    def is_unfinished(self) -> bool:
        return self.partial.exists() and not self.finished.exists()

    def start(self, settings: Mapping[str, Any]) -> None:
        """Mark the folder as unfinished."""
        write_json(self.partial, settings)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the folder as finished."""
        write_json(self.finished, record)
        self.remove_partial()

    def reopen(self) -> None:
        """Mark a finished folder, which `start` was called for, as unfinished."""
        with disk_errors(self.folder):
            self.finished.unlink(missing_ok=True)

    def remove_partial(self) -> None:
        """Remove the partial record, which a kill may have left beside the finished one."""
        with disk_errors(self.folder):
            self.partial.unlink(missing_ok=True)


def read_record(path: Path, fix: str) -> dict[str, Any]:
    """Read a JSON object. Raises: DataError: not one that `write_json` wrote; `fix` says what to do."""
    content = bytes(read_file(path))
    try:
        record = json.loads(content.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(path)}: damaged record; {fix}") from error
    return record


def differences(settings: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """How `settings` differ from the recorded ones, such as "seed 4, not 3"."""
    different = {key: value for key, value in settings.items() if recorded.get(key) != value}
    return [f"{key} {printable(value)}, not {printable(recorded.get(key))[:200]}" for key, value in different.items()]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("duplicate key")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
