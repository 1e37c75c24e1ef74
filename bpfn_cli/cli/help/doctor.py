# SPDX-License-Identifier: MIT
"""`bpfn doctor`."""

from __future__ import annotations

import importlib
import platform
from typing import Any

from bpfn_cli.cli import options
from bpfn_cli.cli.console import print_json
from bpfn_cli.cli.places import RUNS, data_root
from bpfn_cli.parallel import usable_cores

LIBRARIES = [
    "torch",
    "numpy",
    "pydantic",
    "pykdtree",
    "fvcore",
    "safetensors",
    "rich",
    "tabulate",
    "png",
    "yaml",
    "typer",
]  # as imported


def doctor(json: options.Json = False) -> None:
    """Versions, devices, threads and what data is found. Works with a broken installation too.

    Example: `bpfn doctor`
    """
    import bpfn_cli

    found: dict[str, Any] = {
        "bpfn": bpfn_cli.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "C loops": _native(),
        "devices": _devices(),
        "cores": usable_cores(),
        "data root": str(data_root()),
        "data": _data(),
        "runs": len(list(RUNS.glob("*/run.json"))) if RUNS.is_dir() else 0,
    }
    if json:
        print_json(found)
        return
    for name, value in found.items():
        print(f"{name + ':':<14}{value}")


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    distribution = {"png": "pypng", "yaml": "pyyaml"}.get(name, name)
    try:
        number = version(distribution)
    except PackageNotFoundError:
        return f"missing: pip install {distribution}"
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken library is what doctor is asked about
        return f"{number}, but it does not import: {type(error).__name__}: {error}"
    return number


def _devices() -> str:
    try:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return ", ".join(["cpu", *names])
    except Exception as error:  # see _version
        return f"unknown: {type(error).__name__}"


def _native() -> str:
    try:
        from bpfn_cli.ops import native

        return native.describe()
    except Exception as error:  # see _version
        return f"unknown: {type(error).__name__}"


def _data() -> str:
    root = data_root()
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return ", ".join(names) or "none yet: `bpfn subset` makes synthetic scenes"
