# SPDX-License-Identifier: MIT
"""Figures of what runs measured."""

from bpfn_cli.reporting.drawings.all_drawings import run_drawings
from bpfn_cli.reporting.drawings.drawing import Drawing, drawing_files, write_drawings
from bpfn_cli.reporting.drawings.study import study_drawings

__all__ = ["Drawing", "drawing_files", "run_drawings", "study_drawings", "write_drawings"]
