# SPDX-License-Identifier: MIT
"""When the teacher is let go of, and when a training validates."""

from __future__ import annotations

import pytest
from bpfn_cli.recipes.calendar import is_validation_epoch, validation_epochs

from bpfn_cli.recipes.early_stop import EarlyStop, EarlyStopSettings


def shares(kind: str, at: float = 0.5, epochs: int = 8) -> list[float]:
    stop = EarlyStop(EarlyStopSettings(kind=kind, at=at))  # type: ignore[arg-type]
    return [stop.share(epoch, epochs) for epoch in range(epochs)]


def test_shares_by_hand() -> None:
    assert shares("never") == [1] * 8
    assert shares("hard") == [1] * 4 + [0] * 4
    assert shares("linear") == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    assert shares("linear", at=1) == [1 - epoch / 8 for epoch in range(8)]
    assert shares("hard", at=0) == shares("linear", at=0) == [0] * 8
    assert shares("hard", at=1) == [1] * 8


def test_auto_stops_after_three_good_checks_in_a_row_and_stays_so() -> None:
    stop = EarlyStop(EarlyStopSettings(kind="auto"), teacher_epe3d=0.0288)
    found = []
    for epe3d in (0.05, 0.028, 0.0287, 0.03, 0.0288, 0.0280, 0.0281, 0.09):
        stop.observe(epe3d)
        found.append(stop.share(0, 1))
    # Two good ones, a bad one, then three: a figure equal to the teacher's is good.
    assert found == [1, 1, 1, 1, 1, 1, 0, 0]


def test_auto_without_a_teachers_figure_never_stops() -> None:
    stop = EarlyStop(EarlyStopSettings(kind="auto"))
    for _ in range(5):
        stop.observe(0.0)
    assert stop.share(4, 5) == 1


def test_schedule_survives_a_resume() -> None:
    stop = EarlyStop(EarlyStopSettings(kind="auto", checks=2), teacher_epe3d=0.1)
    stop.observe(0.05)
    resumed = EarlyStop(EarlyStopSettings(kind="auto", checks=2), teacher_epe3d=0.1)
    resumed.load_state_dict(stop.state_dict())
    for each in (stop, resumed):
        each.observe(0.05)
        assert each.share(3, 9) == 0


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
