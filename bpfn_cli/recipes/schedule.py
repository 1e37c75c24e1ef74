# SPDX-License-Identifier: MIT
"""The epochs of a training that are validated."""

from __future__ import annotations

FAST_BEGINNING = 1 / 28  # of the epochs: each of the first 20 of 560
FAST_END = 3 / 4  # each after 420 of 560
FAST_EVERY = 5  # epochs in between


def is_validation_epoch(epoch: int, epochs: int, calendar: str, every: int) -> bool:
    """Whether to validate after an epoch, counted from 0. The last epoch is always validated.

    Args: calendar: `every`: each `every`-th epoch; `fast`, as in report 6: each epoch of the first 1/28 and of the last
        quarter, every fifth in between (240 of 560).
    """
    number = epoch + 1
    if number == epochs:
        return True
    if calendar == "fast":
        in_full = number <= round(FAST_BEGINNING * epochs) or number > FAST_END * epochs
        return in_full or number % FAST_EVERY == 0
    return number % every == 0


def validation_epochs(epochs: int, calendar: str, every: int) -> int:
    """The number of validations of a training."""
    return sum(is_validation_epoch(epoch, epochs, calendar, every) for epoch in range(epochs))
