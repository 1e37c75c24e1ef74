# SPDX-License-Identifier: MIT
"""Formats, datasets, preparation and loaders. Nothing here prints."""
