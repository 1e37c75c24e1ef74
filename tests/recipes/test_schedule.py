# SPDX-License-Identifier: MIT
"""The epochs of a training that are validated."""

from __future__ import annotations

import pytest

from bpfn_cli.recipes.schedule import is_validation_epoch, validation_epochs


def epochs_of(calendar: str, epochs: int, every: int = 1) -> list[int]:
    """Epochs counted from 1."""
    return [epoch + 1 for epoch in range(epochs) if is_validation_epoch(epoch, epochs, calendar, every)]


@pytest.mark.parametrize(
    ("epochs", "every", "expected"), [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 1, [1, 2, 3]), (3, 9, [3]), (1, 4, [1])]
)
def test_every_so_many_epochs_and_after_the_last(epochs: int, every: int, expected: list[int]) -> None:
    assert epochs_of("every", epochs, every) == expected


def test_fast_calendar_is_that_of_report_6() -> None:
    found = epochs_of("fast", 560)
    expected = [epoch for epoch in range(1, 561) if epoch <= 20 or epoch > 420 or epoch % 5 == 0]
    assert found == expected
    assert len(found) == validation_epochs(560, "fast", 1) == 240


def test_fast_calendar_of_a_short_training_scales_and_ends_with_the_last() -> None:
    assert epochs_of("fast", 12) == [5, 10, 11, 12]
    assert epochs_of("fast", 28) == [1, 5, 10, 15, 20, 22, 23, 24, 25, 26, 27, 28]
    assert epochs_of("fast", 1) == [1]
