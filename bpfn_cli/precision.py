# SPDX-License-Identifier: MIT
"""The precisions a user can choose. Importable without NumPy and torch."""

from __future__ import annotations

from enum import Enum


class Precision(str, Enum):
    """Precision of the large matrix products; everything else is always float32."""

    float32 = "32"
    bf16 = "bf16"
    float16 = "16"

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        """Accept other common names, and the integers that YAML makes of "32" and "16"."""
        names = {"float32": "32", "fp32": "32", "bfloat16": "bf16", "float16": "16", "fp16": "16"}
        name = names.get(str(value), str(value))
        return next((one for one in cls if one.value == name), None)
