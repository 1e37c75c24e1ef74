# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_world import BIG, TINY, tiny_network, write_things

from bpfn_cli.models import VARIANTS, save_checkpoint


@pytest.fixture(scope="module", autouse=True)
def small_variants() -> Iterator[None]:
    """The smallest networks under names that recipes can use."""
    with pytest.MonkeyPatch.context() as patch:
        for variant in (TINY, BIG):
            patch.setitem(VARIANTS, variant.name, variant)
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As in the processes of `commands` and `pairs`: sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training scenes and one to test on."""
    return write_things(tmp_path_factory.mktemp("data") / "things", train=5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a teacher from elsewhere."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_checkpoint(path, tiny_network(6, BIG))
    return path
