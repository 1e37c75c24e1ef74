# SPDX-License-Identifier: MIT
"""The precisions a user can choose. Importable without NumPy and torch."""

from __future__ import annotations

from enum import Enum


class Precision(str, Enum):
    """Of the large matrix products; everything else is float32 always."""

    float32 = "float32"
    bf16 = "bf16"
