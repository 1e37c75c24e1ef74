# SPDX-License-Identifier: MIT
"""What all datasets are: scenes with names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NamedScenes:
    """The part of a `SceneDataset` that does not depend on the format."""

    kind: str
    root: Path
    split: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)
