# SPDX-License-Identifier: MIT
"""Run folders: what a training leaves behind, and how it is found again."""
