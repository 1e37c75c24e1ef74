# SPDX-License-Identifier: MIT
"""What the options of all styles of synthetic scenes have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpfn_cli.data.names import SPLITS
from bpfn_cli.errors import UsageError

MOST_SCENES = 9_999_999

SceneKey = tuple[str, int]  # split and index


@dataclass(frozen=True)
class SceneOptions(ABC):
    """Which scenes to render, and how. Raises: UsageError: a value out of range."""

    train: int = 400  # number of scenes
    val: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("train", MOST_SCENES), ("val", MOST_SCENES), ("seed", 2**32 - 1)):
            self.check_whole(name, 0, most)
        if self.train + self.val == 0:
            raise UsageError("synthetic train and val are both 0; ask for at least one scene")

    def check_whole(self, name: str, low: int, high: int) -> None:
        """Raises: UsageError: the option is no whole number from `low` to `high`."""
        value = getattr(self, name)
        if type(value) is not int or not low <= value <= high:
            raise UsageError(f"synthetic {name} {value!r}: use a whole number from {low} to {high}")

    def scenes(self) -> list[SceneKey]:
        """All scenes to render."""
        return [(split, index) for split in SPLITS for index in range(getattr(self, split))]

    @property
    def rows_correspond(self) -> bool:
        """Whether row i of both clouds is the same point."""
        return True

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What the record of a folder says about its scenes."""

    @abstractmethod
    def render(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One scene of the folder. Returns: pc1, pc2: (N, 3) float32 metres, internal frame; rows correspond."""
