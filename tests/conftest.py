# SPDX-License-Identifier: MIT
"""Before any test imports torch: a thread for each of the processes that share the cores, and no more."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import bpfn_cli  # noqa: F401, I001  (sets how threads wait)
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: the commands that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


if not torch.cuda.is_available():  # the kernels are interpreted: Triton reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from browser import Browser, launched_chromium
from run_folders import record
from tiny_world import BIG, TINY, tiny_network, write_things

from bpfn_cli.models import VARIANTS, save_checkpoint


@pytest.fixture(scope="module")
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


RunMaker = Callable[..., Path]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def make_run(runs: Path) -> RunMaker:
    """Write `runs/<name>` with these evaluations; keywords change its `run.json`."""

    def make(name: str, *evaluations: dict[str, Any], **changes: Any) -> Path:
        folder = runs / name
        (folder / "evaluations").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record(**changes)))
        for number, content in enumerate(evaluations):
            (folder / "evaluations" / f"{number}.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One process for all pages."""
    with launched_chromium() as started:
        yield started


@pytest.fixture
def browser(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Opens pages. Fails if one has an error in its console, or asks for anything but local files.

    With `$BPFN_PICTURES`, a screenshot of each page, as it is at the end of the test, is saved in that folder.
    """
    opened = Browser(chromium)
    yield opened
    if folder := os.environ.get("BPFN_PICTURES"):
        opened.save_pictures(Path(folder), request.node.name)
    for context in chromium.contexts:
        context.close()
    assert not opened.problems
