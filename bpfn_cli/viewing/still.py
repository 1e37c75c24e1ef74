# SPDX-License-Identifier: MIT
"""A scene as a PNG."""

from __future__ import annotations

from pathlib import Path

from bpfn_cli.viewing.scene import Scene


def write_still(scene: Scene, path: Path) -> None:
    """Write a picture of a scene; needs no display. Raises: UsageError: matplotlib is not installed. DiskError."""
    raise NotImplementedError
