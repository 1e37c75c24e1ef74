# SPDX-License-Identifier: MIT
"""When the influence of the teacher ends."""

from __future__ import annotations

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
    assert sum(shares("hard", at=0.55, epochs=100)) == 55  # in floating point, 0.55 * 100 is above 55
    assert sum(shares("hard", at=0.6428, epochs=560)) == 360


def test_auto_stops_after_three_good_checks_in_a_row_and_stays_so() -> None:
    stop = EarlyStop(EarlyStopSettings(kind="auto"), teacher_epe3d=0.0288)
    found = []
    for epe3d in (0.05, 0.028, 0.0287, 0.03, 0.0288, 0.0280, 0.0281, 0.09):
        stop.observe(epe3d)
        found.append(stop.share(0, 1))
    # Two good ones, a bad one, then three: an EPE3D equal to the teacher's is good.
    assert found == [1, 1, 1, 1, 1, 1, 0, 0]


def test_auto_without_the_epe3d_of_a_teacher_never_stops() -> None:
    stop = EarlyStop(EarlyStopSettings(kind="auto"))
    for _ in range(5):
        stop.observe(0.0)
    assert stop.share(4, 5) == 1


def test_early_stop_survives_a_resume() -> None:
    stop = EarlyStop(EarlyStopSettings(kind="auto", checks=2), teacher_epe3d=0.1)
    stop.observe(0.05)
    resumed = EarlyStop(EarlyStopSettings(kind="auto", checks=2), teacher_epe3d=0.1)
    resumed.load_state_dict(stop.state_dict())
    for each in (stop, resumed):
        each.observe(0.05)
        assert each.share(3, 9) == 0
