# SPDX-License-Identifier: MIT
"""Distillation losses, one a file. `LOSSES` is the registry."""

from bpfn_cli.losses.objective import Objective, ObjectiveSettings, build_losses
from bpfn_cli.losses.registry import LOSSES, NO_DISTILLATION, check_loss_name, is_own_loss, loss_named
from bpfn_cli.losses.supervised import supervised_loss
from bpfn_cli.losses.term import Card, DistillationLoss, HandValue, Levels, Measured, option

__all__ = [
    "LOSSES",
    "NO_DISTILLATION",
    "Card",
    "DistillationLoss",
    "HandValue",
    "Levels",
    "Measured",
    "Objective",
    "ObjectiveSettings",
    "build_losses",
    "check_loss_name",
    "is_own_loss",
    "loss_named",
    "option",
    "supervised_loss",
]
