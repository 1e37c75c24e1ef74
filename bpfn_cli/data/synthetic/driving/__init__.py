# SPDX-License-Identifier: MIT
"""Driving scenes: what a camera on a car sees of a road, as sparse points of surfaces."""
