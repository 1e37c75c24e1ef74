# SPDX-License-Identifier: MIT
"""A report as a page for the browser: one file, which needs no network and no server."""

from bpfn_cli.reporting.html.writer import PageWriter

__all__ = ["PageWriter"]
