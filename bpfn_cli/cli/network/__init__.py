# SPDX-License-Identifier: MIT
"""Commands that shrink and measure networks."""
