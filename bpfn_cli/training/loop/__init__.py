# SPDX-License-Identifier: MIT
"""The training loop: batches, steps, validation and checkpoints."""
