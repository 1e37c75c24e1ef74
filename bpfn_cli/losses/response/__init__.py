# SPDX-License-Identifier: MIT
"""Losses that compare the flows of student and teacher."""
