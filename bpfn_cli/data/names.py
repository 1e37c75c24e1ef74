# SPDX-License-Identifier: MIT
"""Names on disk: the splits, the clouds of a scene, and which folder names are safe."""

import unicodedata
from pathlib import Path

from bpfn_cli.errors import DataError, printable

SPLITS = ("train", "val")
CLOUDS = ("pc1.npy", "pc2.npy")


def check_scene_name(name: str, path: Path) -> str:
    """`name`, checked to be the name of a visible folder directly inside another. Raises: DataError: blames `path`."""
    hidden_or_path = name.startswith(".") or "/" in name or "\\" in name
    control = any(unicodedata.category(character).startswith("C") for character in name)
    if not name or hidden_or_path or control or len(name.encode(errors="replace")) > 255:
        fault = f"{printable(name)[:80]!r} cannot be a scene name"
        advice = "one visible folder name without separators or control characters"
        raise DataError(f"{printable(path)}: {fault} ({advice}); rename it")
    return name
