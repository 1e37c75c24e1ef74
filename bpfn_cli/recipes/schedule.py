# SPDX-License-Identifier: MIT
"""The epochs of a training that are validated."""

FAST_BEGINNING = 1 / 28  # of the epochs: each of the first 20 of 560
FAST_END = 3 / 4  # each after 420 of 560
FAST_EVERY = 5  # epochs in between


def is_validation_epoch(epoch: int, epochs: int, calendar: str, every: int) -> bool:
    """Whether to validate after an epoch, counted from 0: the last, and each `every`-th.

    The calendar `fast`, as in report 6: each of the first 1/28 and the last quarter, every fifth between (240 of 560).
    """
    number = epoch + 1
    if calendar == "fast":
        every = FAST_EVERY
        if number <= round(FAST_BEGINNING * epochs) or number > FAST_END * epochs:
            return True
    return number == epochs or number % every == 0


def validation_epochs(epochs: int, calendar: str, every: int) -> int:
    """The number of validations of a training."""
    return sum(is_validation_epoch(epoch, epochs, calendar, every) for epoch in range(epochs))
