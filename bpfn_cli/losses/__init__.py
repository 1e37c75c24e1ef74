# SPDX-License-Identifier: MIT
"""Distillation losses, one term a file. `LOSSES` names them all."""

from bpfn_cli.losses.objective import LOSSES, Objective, ObjectiveSettings, build_losses
from bpfn_cli.losses.supervised import supervised_loss

__all__ = ["LOSSES", "Objective", "ObjectiveSettings", "build_losses", "supervised_loss"]
