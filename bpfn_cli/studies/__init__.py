# SPDX-License-Identifier: MIT
"""Studies: trainings that are compared."""
