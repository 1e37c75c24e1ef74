# SPDX-License-Identifier: MIT
"""Synthetic scenes: drawn at random, rendered by ray casting, written like FlyingThings3D."""
