# SPDX-License-Identifier: MIT
"""The record of a folder whose driving scenes are rendered while they are read. The folder holds nothing else."""

import contextlib
import os
from dataclasses import fields
from pathlib import Path

from bpfn_cli.data.records import differences, read_record
from bpfn_cli.data.synthetic.driving.scenes import FORMAT, DrivingOptions
from bpfn_cli.errors import DataError, UsageError, printable
from bpfn_cli.files import disk_errors, is_temporary, make_folder, write_json

LIVE_RECORD = "driving.json"

_FIX = "make it again with `bpfn synth --live --force`"


def write_live(folder: Path, options: DrivingOptions, *, force: bool = False) -> None:
    """Write the record to an empty folder. Repeating a finished call does nothing.

    Args: force: replace a record with other options.
    Raises: UsageError: the folder holds other options or other files. DiskError.
    """
    path = make_folder(folder) / LIVE_RECORD
    with disk_errors(folder):
        others = [entry for entry in os.scandir(folder) if entry.name != LIVE_RECORD and not is_temporary(entry)]
    if others:
        raise UsageError(f"{printable(folder)}: not empty; choose another --out")
    if os.path.lexists(path) and not force:
        with contextlib.suppress(DataError):
            if not (changed := differences(options.record(), read_options(folder).record())):
                return
            raise UsageError(
                f"{printable(path)}: {', '.join(changed)}; choose another --out, or replace it with --force"
            )
        raise UsageError(f"{printable(path)}: damaged, or of another version; replace it with --force")
    write_json(path, options.record())


def read_options(folder: Path) -> DrivingOptions:
    """The options in the record of a folder. Raises: DataError: damaged, or of another version. DiskError."""
    path = folder / LIVE_RECORD
    record = read_record(path, _FIX)
    if record.get("format") != FORMAT:
        found = f"scenes of format {printable(str(record.get('format')))}"
        raise DataError(f"{printable(path)}: {found}, but this version of bpfn renders format {FORMAT}; {_FIX}")
    names = {field.name for field in fields(DrivingOptions)}
    try:
        return DrivingOptions(**{key: value for key, value in record.items() if key in names})
    except UsageError as error:
        raise DataError(f"{printable(path)}: damaged record: {error}; {_FIX}") from error
