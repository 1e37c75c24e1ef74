# SPDX-License-Identifier: MIT
"""Random draws for scenes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from bpfn_cli.data.synthetic.rotations import Triple

Item = TypeVar("Item")


class Dice(random.Random):
    """Draws that are functions of `random()` alone, whose sequence Python promises to keep."""

    def between(self, low: float, high: float) -> float:
        """Uniform."""
        return low + (high - low) * self.random()

    def log_between(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return low * math.exp(self.random() * math.log(high / low))

    def whole(self, low: int, high: int) -> int:
        """Uniform whole number, both ends included."""
        return low + int((high - low + 1) * self.random())

    def pick(self, options: Sequence[Item]) -> Item:
        """One of `options`."""
        return options[self.whole(0, len(options) - 1)]

    def heading(self) -> Triple:
        """Uniform direction, unit length."""
        y, angle = self.between(-1.0, 1.0), self.between(0.0, 2.0 * math.pi)
        level = math.sqrt(1.0 - y * y)
        return level * math.cos(angle), y, level * math.sin(angle)
