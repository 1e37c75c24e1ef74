# SPDX-License-Identifier: MIT
"""Commands that evaluate, predict and report."""
