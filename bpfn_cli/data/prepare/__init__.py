# SPDX-License-Identifier: MIT
"""Raw downloads to scenes."""
