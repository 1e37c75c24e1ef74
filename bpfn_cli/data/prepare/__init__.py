# SPDX-License-Identifier: MIT
"""Turn raw downloads into scenes."""
