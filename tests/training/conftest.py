# SPDX-License-Identifier: MIT
import pytest


@pytest.fixture(scope="module", autouse=True)
def recipes_name_small_variants(small_variants: None) -> None:
    """The smallest networks under names that recipes can use."""
