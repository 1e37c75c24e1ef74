# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import random_pair
from tiny_world import BIG, TINY, Quiet, guess_sensitivities, tiny_network

from bpfn_cli.errors import DataError
from bpfn_cli.history import read_history
from bpfn_cli.models import load_checkpoint, read_checkpoint
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning import search as pruning_search
from bpfn_cli.models.pruning.prune import Pruner, Scenes, mean_epe3d
from bpfn_cli.runs.searches import Definition, SearchState, open_state
from bpfn_cli.structures import FlowBatch
from bpfn_cli.studies.search import Search

DEFINITION = Definition(
    bpfn="1.0",
    teacher_sha256="a" * 64,
    data_sha256="b" * 64,
    used=1,
    held_out=1,
    scene_points=1024,
    points=1024,
    seed=0,
    importance="l1",
    budgets=2,
    tries=2,
    keep=2,
    recovery_steps=1,
    latency=True,
)


def scenes() -> Scenes:
    pairs = [[cloud.float() for cloud in random_pair(seed=seed)] for seed in (0, 1)]
    first, second = (FlowBatch(pc1, pc2, torch.full_like(pc1, 0.1), ("a",)) for pc1, pc2 in pairs)
    return Scenes([first], [second])


def search(folder: Path) -> Search:
    folder.mkdir(exist_ok=True)
    state, pruner = open_state(folder, DEFINITION), Pruner(tiny_network(4, BIG))
    return Search(folder, state, pruner, scenes(), lambda variant: cost_of(variant).macs / 1e6, Quiet())


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def quick(small_variants: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pruner, "measure", guess_sensitivities)
        patch.setattr(pruning_search, "NAMED", ("tiny",))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, quick: None) -> tuple[Path, SearchState]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, search(folder).run()


def test_networks_found_are_checkpoints_with_the_errors_that_are_stated(whole: tuple[Path, SearchState]) -> None:
    folder, state = whole
    assert state.is_finished
    assert len(state.candidates) == (2 + 1) * 2  # the budgets, and that of the named variant
    found, named = ([one for one in state.networks if one.is_named is kind] for kind in (False, True))
    assert [(one.name, one.macs, one.file) for one in named] == [("tiny", cost_of(TINY, 1024).macs, None)]
    assert any(one.macs <= named[0].macs for one in found)
    for one in found:
        read = read_checkpoint(folder / str(one.file))
        assert (cost_of(read.variant, 1024).macs, read.variant.name) == (one.macs, one.name)
        error = mean_epe3d(load_checkpoint(folder / str(one.file)), scenes().held_out)
        assert error == pytest.approx(one.epe3d_m, rel=1e-4)
        assert [step.step for step in read_history(read.metadata)] == ["teacher", "pruned"]


@pytest.mark.parametrize("step", ["candidates", "networks"])
def test_a_killed_search_resumes_with_the_same_result(
    whole: tuple[Path, SearchState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    save = Search.save

    def killed(self: Search, **changes: Any) -> None:
        save(self, **changes)
        if step in changes:
            raise Killed

    monkeypatch.setattr(Search, "save", killed)
    with pytest.raises(Killed):
        search(tmp_path / "s").run()
    monkeypatch.setattr(Search, "save", save)
    assert len(getattr(open_state(tmp_path / "s", DEFINITION), step)) == 1
    monkeypatch.setattr(Pruner, "prepare", None)  # not again
    again, expected = search(tmp_path / "s").run(), whole[1]
    assert again.candidates == expected.candidates
    assert [one.name for one in again.networks] == [one.name for one in expected.networks]
    for one, other in zip(again.networks, expected.networks, strict=True):
        assert (one.cut_m, one.epe3d_m) == pytest.approx((other.cut_m, other.epe3d_m), rel=1e-3)


def test_a_state_of_another_teacher_is_refused(whole: tuple[Path, SearchState], tmp_path: Path) -> None:
    state = whole[1]
    state.changed(orders=((0, 0), *state.orders[1:])).write(tmp_path)
    with pytest.raises(DataError, match="its orders are not those of this teacher"):
        search(tmp_path).run()
