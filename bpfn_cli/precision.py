# SPDX-License-Identifier: MIT
"""The precisions a user can choose. Importable without NumPy and torch."""

from __future__ import annotations

from enum import Enum


class Precision(str, Enum):
    """Of the large matrix products; everything else is float32 always."""

    float32 = "32"
    bf16 = "bf16"
    float16 = "16"

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        """Also by other names, and by the numbers that YAML makes of them."""
        names = {
            "float32": cls.float32,
            "fp32": cls.float32,
            "bfloat16": cls.bf16,
            "float16": cls.float16,
            "fp16": cls.float16,
        }
        return names.get(str(value)) or next((one for one in cls if one.value == str(value)), None)
