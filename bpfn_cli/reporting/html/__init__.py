# SPDX-License-Identifier: MIT
"""A report as a page for the browser: one file, which needs no network and no server."""
