# SPDX-License-Identifier: MIT
"""Recipes: everything that decides what is trained."""
