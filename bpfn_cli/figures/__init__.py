# SPDX-License-Identifier: MIT
"""Figures in one style, for papers and pages: they take numbers and names, and read no file but the style."""
