# SPDX-License-Identifier: MIT
"""Loggers of a training's metrics, where they are installed: TensorBoard, Weights & Biases."""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bpfn_cli.errors import UsageError

Say = Callable[[str], None]
Picture = Callable[[], np.ndarray]  # (H, W, 3) uint8


class MetricsLogger(Protocol):
    """Receives the metrics of each epoch, as in metrics.jsonl."""

    def epoch(self, values: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Scalars of all metrics by epoch, and a picture after each validation, as event files in `folder`."""

    def __init__(self, folder: Path, epochs_done: int, picture: Picture | None = None):
        from torch.utils.tensorboard import SummaryWriter

        # Hides what a killed process wrote after its last checkpoint.
        self.picture = picture
        self.writer = SummaryWriter(str(folder), purge_step=epochs_done + 1 if epochs_done else None)

    def epoch(self, values: Mapping[str, Any]) -> None:
        for name, value in _numbers(values).items():
            self.writer.add_scalar(name, value, values["epoch"])
        if self.picture is not None and any(name.startswith("validation_") for name in values):
            self.writer.add_image("validation/scene", self.picture(), values["epoch"], dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run in the user's project, resumed under the same id after an interruption."""

    def __init__(self, project: str, run: Path, config: Mapping[str, Any]):
        import wandb

        run_id = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]  # the same at every start of this run
        names = {"project": project, "name": run.name, "dir": str(run), "id": run_id}
        self.run = wandb.init(**names, config=dict(config), resume="allow", reinit=True)

    def epoch(self, values: Mapping[str, Any]) -> None:
        self.run.log(_numbers(values), step=values["epoch"])

    def close(self) -> None:
        self.run.finish()


class FaultTolerant:
    """Wraps a logger: its first failure (full disk, no network) is reported once and does not end the training."""

    def __init__(self, logger: MetricsLogger, say: Say):
        self.logger, self.say, self.has_failed = logger, say, False

    def epoch(self, values: Mapping[str, Any]) -> None:
        try:
            if not self.has_failed:
                self.logger.epoch(values)
        except Exception as error:
            self.has_failed = True
            self.say(f"warning: {type(self.logger).__name__} has failed and is switched off: {error}")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.logger.close()


def tensorboard(folder: Path, epochs_done: int, say: Say, picture: Picture | None = None) -> list[MetricsLogger]:
    """The TensorBoard logger; nothing where the package is not installed or cannot start."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [FaultTolerant(TensorBoard(folder, epochs_done, picture), say)]
    except ImportError:
        return []
    except Exception as error:  # for example a full disk
        say(f"warning: no TensorBoard events: {error}")
        return []


def weights_and_biases(project: str, run: Path, config: Mapping[str, Any], say: Say) -> list[MetricsLogger]:
    """The Weights & Biases logger; nothing where it cannot start. Raises: UsageError: it is not installed."""
    try:
        return [FaultTolerant(WeightsAndBiases(project, run, config), say)]
    except ImportError:
        advice = "`pip install wandb`, or set train.wandb to null"
        raise UsageError(f"train.wandb: Weights & Biases is not installed: {advice}") from None
    except Exception as error:  # for example no network or no login
        say(f"warning: no logging to Weights & Biases: {error}")
        return []


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics, `loss_supervised` as `loss/supervised` and so on, so that related ones are shown together."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "epoch"}
    return {name.replace("_", "/", 1): float(value) for name, value in numbers.items()}
