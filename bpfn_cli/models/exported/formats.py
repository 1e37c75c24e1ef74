# SPDX-License-Identifier: MIT
"""The export formats."""

from pathlib import Path

from bpfn_cli.errors import UsageError, printable
from bpfn_cli.models.exported.base import Format
from bpfn_cli.models.exported.onnx_file import Onnx
from bpfn_cli.models.exported.torch_program import TorchProgram
from bpfn_cli.models.exported.weights import Published, Safetensors

FORMATS: dict[str, Format] = {format.name: format for format in (Onnx(), TorchProgram(), Published(), Safetensors())}


def format_of(path: Path) -> Format:
    """The format that the suffix of a file means. Raises: UsageError: none."""
    found = next((format for format in FORMATS.values() if format.suffix == path.suffix), None)
    if found is None:
        known = ", ".join(format.suffix for format in FORMATS.values())
        raise UsageError(f"--out {printable(path)}: use one of the suffixes {known}, or --format")
    return found
