# SPDX-License-Identifier: MIT
"""Clouds in `.las` and `.laz`, read by laspy, which is an extra."""

import io

import numpy as np

from bpfn_cli.data.clouds.cloud import CloudFile, Columns
from bpfn_cli.errors import DataError, UsageError


def read_las(file: CloudFile) -> Columns:
    """Scaled coordinates in float64. Raises: UsageError: laspy or its decompressor is missing. DataError: damaged."""
    try:
        import laspy
        import lazrs  # noqa: F401  (laspy needs it for .laz)
    except ImportError as error:
        install = 'pip install -c constraints.txt -e ".[io]"'
        raise UsageError(f"{file.name}: reading LAS and LAZ needs laspy: {install}") from error
    try:
        read = laspy.read(io.BytesIO(file.content))
        fields = {axis: np.asarray(getattr(read, axis), np.float64) for axis in "xyz"}
        expected = read.header.point_count
    except DataError:
        raise
    except Exception as error:  # laspy and lazrs raise many kinds for damaged files
        raise file.fault("not a LAS or LAZ file, or damaged; write it again") from error
    if len(fields["x"]) != expected:
        raise file.fault(f"truncated: {len(fields['x']):,} points found, {expected:,} expected; write it again")
    return Columns(fields, "LAS points")
