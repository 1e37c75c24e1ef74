# SPDX-License-Identifier: MIT
"""The parts of a cloud: no row twice inside one, each row once as far as they fit, the same whatever follows."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bpfn_cli.models.parts import cloud_key, deal


def dealt(count: int, parts: int, size: int, seed: int) -> np.ndarray:
    return np.stack(list(islice(deal(count, size, np.random.default_rng(seed)), parts)))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_deal_into_just_enough_parts_holds_each_row_and_fills_only_the_last(count: int, size: int, seed: int) -> None:
    size = min(size, count)
    parts = -(-count // size)
    found = dealt(count, parts, size, seed)
    assert found.shape == (parts, size)
    assert all(len(set(part)) == size for part in found.tolist())
    assert set(found.ravel()) == set(range(count))
    whole = found[:-1].ravel().tolist()
    assert len(set(whole)) == len(whole)  # what is dealt twice stands in the last part
    assert np.bincount(found.ravel()).max() <= 2


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 40), st.integers(0, 9))
def test_deal_of_any_number_of_parts_repeats_nothing_inside_one(count: int, parts: int, size: int, seed: int) -> None:
    size = min(size, count)
    found = dealt(count, parts, size, seed)
    assert found.shape == (parts, size)
    assert all(len(set(part)) == size for part in found.tolist())
    assert len(set(found.ravel())) == min(parts * size, count)
    times = np.bincount(found.ravel(), minlength=count)
    assert times.max() - times.min() <= 1  # in turn: nothing a third time before all stand twice


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(0, 9))
def test_first_parts_do_not_depend_on_how_many_follow(count: int, size: int, parts: int, seed: int) -> None:
    size = min(size, count)
    assert np.array_equal(dealt(count, parts, size, seed), dealt(count, parts + 3, size, seed)[:parts])


def test_cloud_key_is_that_of_the_values() -> None:
    cloud = np.random.default_rng(0).random((5, 3), np.float32)
    cloud[0] = 0
    same, other = np.asfortranarray(cloud), cloud.copy()
    same[0, 1], other[4, 2] = -0.0, np.nextafter(cloud[4, 2], np.float32(2))
    assert cloud_key(cloud) == cloud_key(same)
    assert cloud_key(cloud) != cloud_key(other)
