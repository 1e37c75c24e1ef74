# SPDX-License-Identifier: MIT
"""Commands that make and inspect datasets."""
