# SPDX-License-Identifier: MIT
"""The libraries of the extra `viz`."""

from importlib.util import find_spec

from bpfn_cli.errors import UsageError


def need_viz(*modules: str) -> None:
    """Raises: UsageError: a module of the extra `viz` is not installed."""
    if missing := [module for module in modules if find_spec(module) is None]:
        install = 'pip install -c constraints.txt -e ".[viz]"'
        raise UsageError(f"pages and pictures need {' and '.join(missing)}: {install}")
