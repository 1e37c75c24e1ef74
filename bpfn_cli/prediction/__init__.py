# SPDX-License-Identifier: MIT
"""Prediction of the flow between clouds of users: a row for each of theirs, and what is known about the result."""
