# SPDX-License-Identifier: MIT
"""`bpfn doctor`."""

import importlib
import os
import platform
import re
from collections.abc import Callable
from typing import Any

from bpfn_cli import LIMITED, locks
from bpfn_cli.cli import options
from bpfn_cli.cli.console import echo, print_json
from bpfn_cli.cli.places import RUNS, data_root
from bpfn_cli.cores import allowed_cores, cpu_quota, usable_cores

LIBRARIES = {
    **{name: name for name in ("torch", "numpy", "pydantic", "pykdtree", "fvcore", "safetensors", "rich", "tabulate")},
    **{"png": "pypng", "yaml": "pyyaml", "typer": "typer"},
}  # module: distribution


def doctor(json: options.Json = False) -> None:
    """Print versions, devices, cores and the data found.

    Works with a broken installation too.

    \b
    Examples:
      $ bpfn doctor            # what to look at first when something fails
      $ bpfn doctor --json     # for a bug report
    """
    import bpfn_cli

    found: dict[str, Any] = {
        "bpfn": bpfn_cli.__version__,
        "python": platform.python_version(),
        **{module: _version(module, distribution) for module, distribution in LIBRARIES.items()},
        "extras": _or_unknown(_extras),
        "C loops": _or_unknown(_native),
        "devices": _or_unknown(_devices),
        "cores": usable_cores(),
        "quota": _quota(),
        "threads": _or_unknown(_threads),
        "data root": str(data_root()),
        "data": _data(),
        "locks": locks.describe(),
        "runs": sum(not path.parent.is_symlink() for path in RUNS.glob("*/run.json")),  # `latest` is a link
    }
    if json:
        print_json(found)
        return
    for name, value in found.items():
        echo(f"{name + ':':<14}{value}")


def _extras() -> str:
    """The extras by whether their libraries are installed, such as "viz; missing: io (laspy)"."""
    from importlib.metadata import PackageNotFoundError, requires, version

    lacking: dict[str, list[str]] = {}
    for line in requires("bpfn") or []:
        found = re.match(r"""([\w.-]+).*;.*\bextra == ["']([\w-]+)""", line)
        if found is None or found[2] == "dev":
            continue
        missing = lacking.setdefault(found[2], [])
        try:
            version(found[1])
        except PackageNotFoundError:
            missing.append(found[1])
    present = ", ".join(name for name, missing in lacking.items() if not missing) or "none"
    absent = ", ".join(f"{name} ({', '.join(missing)})" for name, missing in lacking.items() if missing)
    return present + (f"; missing: {absent}" if absent else "")


def _version(module: str, distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version(distribution)
    except PackageNotFoundError:
        return f"missing: pip install {distribution}"
    try:
        importlib.import_module(module)
    except Exception as error:  # doctor is there to report broken libraries
        return f"{number}, but it does not import: {type(error).__name__}: {error}"
    return number


def _or_unknown(describe: Callable[[], str]) -> str:
    try:
        return describe()
    except Exception as error:  # see _version
        return f"unknown: {type(error).__name__}"


def _devices() -> str:
    import torch

    return ", ".join(["cpu", *map(torch.cuda.get_device_name, range(torch.cuda.device_count()))])


def _quota() -> str:
    quota = cpu_quota()
    return "none" if quota is None else f"{quota:g} of {allowed_cores()} cores, set by the container"


def _threads() -> str:
    import torch

    chosen = "by OMP_NUM_THREADS" if "OMP_NUM_THREADS" in os.environ and not LIMITED else "one per usable core"
    return f"{torch.get_num_threads()} for a network, {chosen}"


def _native() -> str:
    from bpfn_cli.ops import native

    return native.describe()


def _data() -> str:
    root = data_root()
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return ", ".join(names) or "none yet: `bpfn subset` renders synthetic scenes"
