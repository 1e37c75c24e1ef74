# SPDX-License-Identifier: MIT
"""Others who follow a training, where they are installed: TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from bpfn_cli.errors import UsageError


class Observer(Protocol):
    """Is told of each epoch."""

    def epoch(self, values: Mapping[str, Any]) -> None:
        """The record of an epoch, as it stands in metrics.jsonl."""

    def close(self) -> None:
        """Nothing more is coming."""


class TensorBoard:
    """Scalars of all figures by epoch, as event files below `folder`."""

    def __init__(self, folder: Path, epochs_done: int):
        from torch.utils.tensorboard import SummaryWriter

        # What a killed process wrote beyond its last checkpoint is hidden.
        self.writer = SummaryWriter(str(folder), purge_step=epochs_done + 1 if epochs_done else None)

    def epoch(self, values: Mapping[str, Any]) -> None:
        for name, value in _numbers(values).items():
            self.writer.add_scalar(_grouped(name), value, values["epoch"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the user's own project there, gone on with under the same id after an interruption."""

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any], run_id: str):
        import wandb

        self.run = wandb.init(
            project=project, name=name, dir=str(folder), config=dict(config), id=run_id, resume="allow", reinit=True
        )

    def epoch(self, values: Mapping[str, Any]) -> None:
        self.run.log({_grouped(name): value for name, value in _numbers(values).items()}, step=values["epoch"])

    def close(self) -> None:
        self.run.finish()


class Patient:
    """An observer whose troubles (a full disk, no network) are told once and end nothing."""

    def __init__(self, observer: Observer, say: Any):
        self.observer, self.say = observer, say
        self.is_well = True

    def epoch(self, values: Mapping[str, Any]) -> None:
        if self.is_well:
            try:
                self.observer.epoch(values)
            except Exception as error:
                self.is_well = False
                self.say(f"warning: {type(self.observer).__name__} is told nothing more: {error}")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.observer.close()


def tensorboard(folder: Path, epochs_done: int, say: Any) -> Observer | None:
    """The observer, or None where the package is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Patient(TensorBoard(folder, epochs_done), say)
    except ImportError:
        return None
    except Exception as error:  # a full disk, say
        say(f"warning: no TensorBoard events: {error}")
        return None


def weights_and_biases(project: str, run: Path, config: Mapping[str, Any], say: Any) -> Observer | None:
    """The observer; None, which is told, where it cannot begin. Raises: UsageError: the package is not installed."""
    try:
        return Patient(WeightsAndBiases(project, run.name, run, config, _id_of(run)), say)
    except ImportError:
        raise UsageError(
            "train.wandb: Weights & Biases is not installed: `pip install wandb`, or set it to null"
        ) from None
    except Exception as error:  # no network, no login
        say(f"warning: Weights & Biases is told nothing: {error}")
        return None


def _id_of(run: Path) -> str:
    """The same at every start of a run, and another for each run."""
    return hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float) and name != "epoch"}


def _grouped(name: str) -> str:
    """`loss/supervised` of `loss_supervised`, so that like figures stand together."""
    head, _, rest = name.partition("_")
    return f"{head}/{rest}" if rest else name
