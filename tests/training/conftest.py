# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Iterator

import pytest
from tiny_world import BIG, TINY

from bpfn_cli.models import VARIANTS


@pytest.fixture(scope="module", autouse=True)
def small_variants() -> Iterator[None]:
    """The smallest networks under names that recipes can use."""
    with pytest.MonkeyPatch.context() as patch:
        for variant in (TINY, BIG):
            patch.setitem(VARIANTS, variant.name, variant)
        yield
