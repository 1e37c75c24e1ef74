# SPDX-License-Identifier: MIT
"""Losses that compare the features of student and teacher."""
