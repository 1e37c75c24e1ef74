# SPDX-License-Identifier: MIT
"""What all datasets are: scenes with names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCENES_OF_A_SEQUENCE = 10  # consecutive numbers in FlyingThings3D; approximate, where frames are left out


def sequence_of(kind: str, name: str) -> int | str:
    """The sequence a scene belongs to: scenes of one are alike, so they are held out and drawn together."""
    if not name.isdecimal():
        return name
    return int(name) // SCENES_OF_A_SEQUENCE if kind.startswith("flyingthings3d") else int(name)


@dataclass(frozen=True)
class NamedScenes:
    """The part of a `SceneDataset` that does not depend on the format."""

    kind: str
    root: Path
    split: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)
