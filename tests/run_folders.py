# SPDX-License-Identifier: MIT
"""JSON files of a run, typed by hand, and drawn reports."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from bpfn_cli.reporting import Report, print_console

SIZES = {
    "baseline": {"parameters": 7958604, "unused_parameters": 512, "module_macs": 1672000000},
    "weightnet48": {"parameters": 3857356, "unused_parameters": 512, "module_macs": 956000000},
    "weightnet4": {"parameters": 2733852, "unused_parameters": 512, "module_macs": 921000000},
}


def record(**changes: Any) -> dict[str, Any]:
    """A complete `run.json` of a finished student; `a__b=` changes a nested value."""
    variant = changes.get("variant", "weightnet48")
    value: dict[str, Any] = {
        "format": 1,
        "name": "as the run was called when it began",
        "command": "distill",
        "state": "finished",
        "reason": None,
        "role": "student",
        "variant": variant,
        "method": "bihint",
        "seed": 0,
        "points": 1024,
        "epochs": 8,
        "epochs_done": 8,
        "train_seconds": 90.0,
        "weights_sha256": "c" * 64,
        "data": {
            "kind": "subset",
            "source_kind": "synthetic",
            "path": "data/subset",
            "train_scenes": 84,
            "held_out_scenes": 4,
            "fraction": 0.2,
            "sha256": "d" * 64,
        },
        "teacher": {"run": "teacher-a", "variant": "baseline", "sha256": "e" * 64},
        "complexity": {"points": 1024, **SIZES.get(variant, SIZES["weightnet48"]), "checkpoint_bytes": 15500000},
        "started": "2025-03-01T10:00:00+00:00",
        "finished": "2025-03-01T10:02:00+00:00",
        "versions": {"torch": "2.13.0"},
    }
    return changed(value, changes)


def evaluation(epe3d: float = 0.12, **changes: Any) -> dict[str, Any]:
    """A complete `evaluations/*.json`: the network, and baselines with EPE3D 0.3 and 0.2."""
    value: dict[str, Any] = {
        "format": 1,
        "dataset": {
            "kind": "synthetic",
            "split": "test",
            "path": "data/synthetic",
            "scenes": 40,
            "sha256": "a1b2c3d4e5f6" + "0" * 52,
        },
        "points": 1024,
        "seed": 0,
        "checkpoint": {"which": "best", "sha256": "c" * 64},
        "rows": [
            metrics("model", epe3d, 0.4, 0.7, 0.5, 9.5, 0.25),
            metrics("zero_flow", 0.3, 0.05, 0.1, 0.95, 21.25, 0.02),
            metrics("nearest_neighbor", 0.2, 0.2, 0.45, 0.8, 15.0, 0.1),
        ],
    }
    return changed(value, changes)


def metrics(name: str, *values: float | None) -> dict[str, Any]:
    keys = ("epe3d", "acc3d_strict", "acc3d_relax", "outliers3d", "epe2d", "acc2d")
    return {"name": name, **dict(zip(keys, values, strict=True))}


def changed(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, new in changes.items():
        *outer, last = key.split("__")
        place = value
        for name in outer:
            place = place[name]
        place[last] = new
    return value


def drawn(report: Report, width: int) -> str:
    stream = io.StringIO()
    print_console(report, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()
