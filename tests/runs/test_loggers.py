# SPDX-License-Identifier: MIT
from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bpfn_cli.errors import UsageError
from bpfn_cli.runs.loggers import Patient, tensorboard, weights_and_biases


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Of the event files, as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_scalars_of_all_figures_by_epoch(tmp_path: Path) -> None:
    board = tensorboard(tmp_path, 0, print)
    assert board is not None
    for epoch in (1, 2):
        board.epoch({"epoch": epoch, "loss_supervised": 2.0 * epoch, "lr": 1e-3, "name": "text"})
    board.close()
    found = scalars(tmp_path)
    assert found.keys() == {"loss/supervised", "lr"}
    assert found["loss/supervised"] == {1: 2.0, 2: 4.0}


def test_what_a_killed_process_wrote_beyond_its_checkpoint_is_hidden(tmp_path: Path) -> None:
    for done, value in ((0, 1.0), (1, 5.0)):
        board = tensorboard(tmp_path, done, print)
        assert board is not None
        for epoch in range(done + 1, 4):
            board.epoch({"epoch": epoch, "lr": value})
        board.close()
    assert scalars(tmp_path)["lr"] == {1: 1.0, 2: 5.0, 3: 5.0}


def test_without_the_package_there_are_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tensorboard(tmp_path, 0, print) is None


def test_observer_in_trouble_is_told_of_once_and_ends_nothing() -> None:
    class Broken:
        def epoch(self, values: Any) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            raise OSError("still none")

    said: list[str] = []
    observer = Patient(Broken(), said.append)
    observer.epoch({})
    observer.epoch({})
    observer.close()
    assert said == ["warning: Broken is told nothing more: no space left"]


def test_weights_and_biases_is_gone_on_with_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in of the package: what it is asked, and told."""
    begun: list[dict[str, Any]] = []
    told: list[tuple[dict[str, float], int]] = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((values, step)), finish=lambda: None)
    stand_in = types.SimpleNamespace(init=lambda **given: begun.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)  # type: ignore[arg-type]
    for _ in range(2):
        observer = weights_and_biases("thesis", tmp_path / "a", {"seed": 0}, print)
        observer.epoch({"epoch": 3, "loss_hint": 0.5})
        observer.close()
    assert told == [({"loss/hint": 0.5}, 3)] * 2
    assert begun[0] == begun[1]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("thesis", "a", "allow")
    weights_and_biases("thesis", tmp_path / "b", {}, print)
    assert begun[2]["id"] != begun[0]["id"]


def test_weights_and_biases_that_is_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        weights_and_biases("thesis", tmp_path, {}, print)
