# SPDX-License-Identifier: MIT
"""Schedules of a training: the learning rate of each step, and the epochs that are validated."""

from __future__ import annotations

import math

from bpfn_cli.recipes.recipe import TrainSettings

FAST_BEGINNING = 1 / 28  # of the epochs: each of the first 20 of 560
FAST_END = 3 / 4  # each after 420 of 560
FAST_EVERY = 5  # epochs in between


def learning_rate(options: TrainSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole training."""
    if options.schedule == "step":
        decayed = options.lr * options.decay ** (step // steps_per_epoch // options.step_epochs)
        return max(decayed, options.lr_floor)
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    total = max(1, options.epochs * steps_per_epoch - options.warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - options.warmup_steps) / total)))
    return options.lr_floor + (options.lr - options.lr_floor) * falling


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
