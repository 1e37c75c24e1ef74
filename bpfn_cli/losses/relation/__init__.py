# SPDX-License-Identifier: MIT
"""Losses that compare relations among points, of student and teacher."""
