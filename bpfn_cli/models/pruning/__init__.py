# SPDX-License-Identifier: MIT
"""Structured pruning: a smaller network that meets a budget, from a trained one."""
