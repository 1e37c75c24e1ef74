# SPDX-License-Identifier: MIT
from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfn_cli.errors import UsageError
from bpfn_cli.runs.loggers import FaultTolerant, tensorboard, weights_and_biases


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Of the event files, as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    return {tag: {event.step: event.value for event in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def test_tensorboard_logs_all_metrics_by_epoch(tmp_path: Path) -> None:
    (board,) = tensorboard(tmp_path, 0, print)
    for epoch in (1, 2):
        board.epoch({"epoch": epoch, "loss_supervised": 2.0 * epoch, "lr": 1e-3, "name": "text"})
    board.close()
    found = scalars(tmp_path)
    assert found.keys() == {"loss/supervised", "lr"}
    assert found["loss/supervised"] == {1: 2.0, 2: 4.0}


def test_tensorboard_gets_a_picture_after_each_validation(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (board,) = tensorboard(tmp_path, 0, print, lambda: np.full((4, 6, 3), 200, np.uint8))
    board.epoch({"epoch": 1, "lr": 1.0})
    board.epoch({"epoch": 2, "lr": 1.0, "validation_epe3d": 0.5})
    board.close()
    found = accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    (image,) = found.Images("validation/scene")
    assert (image.step, image.width, image.height) == (2, 6, 4)


def test_tensorboard_hides_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    for done, value in ((0, 1.0), (1, 5.0)):
        (board,) = tensorboard(tmp_path, done, print)
        for epoch in range(done + 1, 4):
            board.epoch({"epoch": epoch, "lr": value})
        board.close()
    assert scalars(tmp_path)["lr"] == {1: 1.0, 2: 5.0, 3: 5.0}


def test_tensorboard_without_the_package_logs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert tensorboard(tmp_path, 0, print) == []


def test_failing_logger_is_reported_once_and_ends_nothing() -> None:
    class Broken:
        def epoch(self, values: Any) -> None:
            raise OSError("no space left")

        def close(self) -> None:
            raise OSError("still none")

    said: list[str] = []
    logger = FaultTolerant(Broken(), said.append)
    logger.epoch({})
    logger.epoch({})
    logger.close()
    assert said == ["warning: Broken has failed and is switched off: no space left"]


def test_weights_and_biases_resumes_under_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package."""
    begun: list[dict[str, Any]] = []
    told: list[tuple[dict[str, float], int]] = []
    run = types.SimpleNamespace(log=lambda values, step: told.append((values, step)), finish=lambda: None)
    stand_in = types.SimpleNamespace(init=lambda **given: begun.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)  # type: ignore[arg-type]
    for _ in range(2):
        (logger,) = weights_and_biases("thesis", tmp_path / "a", {"seed": 0}, print)
        logger.epoch({"epoch": 3, "loss_hint": 0.5})
        logger.close()
    assert told == [({"loss/hint": 0.5}, 3)] * 2
    assert begun[0] == begun[1]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("thesis", "a", "allow")
    weights_and_biases("thesis", tmp_path / "b", {}, print)
    assert begun[2]["id"] != begun[0]["id"]


def test_weights_and_biases_without_the_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        weights_and_biases("thesis", tmp_path, {}, print)
