# SPDX-License-Identifier: MIT
from collections.abc import Iterator
from functools import cache

import pytest

from bpfn_cli.training import pipeline


@pytest.fixture(scope="module", autouse=True)
def recipes_name_small_variants(small_variants: None) -> None:
    """The smallest networks under names that recipes can use."""


@pytest.fixture(scope="session", autouse=True)
def size_of_each_variant_is_counted_once() -> Iterator[None]:
    """Counting MACs takes longer than a training of these tests; each network is counted only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "count_modules", cache(pipeline.count_modules))
        yield
