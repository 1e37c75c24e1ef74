# SPDX-License-Identifier: MIT
"""Pages from templates: one file each, which runs and fetches nothing but its own scripts and style."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bpfn_cli.resources

RESOURCES = Path(bpfn_cli.resources.__file__).parent


def render(template: str, style: str, scripts: Sequence[str], **values: Any) -> str:
    """The HTML of a template, with all values escaped. The extra `viz` must be installed.

    Args: template, style, scripts: files in the resources of the package. values: what the template shows.
    """
    from jinja2 import Environment, StrictUndefined

    look, programs = resource(style), [resource(script) for script in scripts]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(resource(template)).render(
        style=look,
        style_hash=_hash(look),
        scripts=programs,
        script_hashes=[_hash(program) for program in programs],
        **values,
    )


def resource(name: str) -> str:
    """The text of a file in the resources of the package."""
    return (RESOURCES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names a script or style that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
