# SPDX-License-Identifier: MIT
"""Colors of flows and errors, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bpfn_cli.viewing import colors

DIRECTIONS = {"forward": (0, 0, 1), "left": (1, 0, 0), "backward": (0, 0, -1), "right": (-1, 0, 0)}
RED, CYAN = (255, 0, 0), (0, 255, 255)


def test_direction_is_hue() -> None:
    found = colors.flow_colors(np.array([*DIRECTIONS.values()], float), 1.0)
    assert [*map(tuple, found)] == [RED, (128, 255, 0), CYAN, (128, 0, 255)]


def test_length_is_value_and_saturation() -> None:
    still, half, full, beyond = colors.flow_colors(np.outer([0, 1, 2, 4], (0, 0, 1)), 2.0)
    assert tuple(still) == (140, 140, 140)
    assert tuple(full) == tuple(beyond) == RED
    assert still[0] < half[0] < full[0] and still[1] > half[1] > full[1]


def test_unknown_is_gray() -> None:
    assert tuple(colors.flow_colors(np.array([[np.nan, 0, 0]]), 1)[0]) == colors.UNKNOWN
    assert tuple(colors.error_colors(np.array([np.nan]), 1)[0]) == colors.UNKNOWN


def test_larger_errors_are_lighter() -> None:
    found = colors.error_colors(np.linspace(0, 1, 50), 1.0)
    assert tuple(found[0]) == (0x6A, 0x00, 0xA8) and tuple(found[-1]) == (0xFC, 0xCE, 0x25)
    assert (np.diff(found @ (0.2126, 0.7152, 0.0722)) > 0).all()
    assert np.array_equal(colors.error_colors(np.array([5.0]), 1.0), found[-1:])


@pytest.mark.parametrize(("length", "end"), [(0.0, 0.05), (0.9, 1.0), (1.0, 1.0), (1.1, 1.5), (23, 30), (0.07, 0.08)])
def test_scales_end_at_a_round_number(length: float, end: float) -> None:
    assert colors.flow_scale_m([np.full((20, 3), (length, 0, 0))]) == pytest.approx(end)
    assert colors.error_scale_m([np.full(20, length), np.full(5, np.nan)]) == pytest.approx(end)


def test_wheel_shows_the_colors_of_directions() -> None:
    wheel = colors.flow_wheel()
    size = len(wheel)
    top, left, corner = wheel[1, size // 2], wheel[size // 2, 1], wheel[0, 0]
    assert np.abs(top[:3].astype(int) - RED).max() < 12
    assert left[1] > 240 and left[2] < 20
    assert corner[3] == 0 and top[3] == 255
