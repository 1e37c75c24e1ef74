# SPDX-License-Identifier: MIT
"""Files of a network for other programs: one file a format, a list of them, and the export with its verification."""

from bpfn_cli.models.exported.formats import FORMATS, format_of
from bpfn_cli.models.exported.onnx_file import SUFFIX as ONNX_SUFFIX
from bpfn_cli.models.exported.onnx_file import OnnxNetwork, read_onnx
from bpfn_cli.models.exported.verified_export import TOLERANCE_M, Comparison, Pair, compare, export

__all__ = [
    "FORMATS",
    "ONNX_SUFFIX",
    "TOLERANCE_M",
    "Comparison",
    "OnnxNetwork",
    "Pair",
    "compare",
    "export",
    "format_of",
    "read_onnx",
]
