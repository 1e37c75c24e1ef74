# SPDX-License-Identifier: MIT
"""A share of a dataset, with a record of what was chosen and why."""
