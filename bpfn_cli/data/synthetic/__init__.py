# SPDX-License-Identifier: MIT
"""Ray-cast synthetic scenes."""
