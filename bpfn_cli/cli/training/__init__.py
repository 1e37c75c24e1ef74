# SPDX-License-Identifier: MIT
"""Commands that train."""
