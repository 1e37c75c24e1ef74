# SPDX-License-Identifier: MIT
"""Recipes, run folders and the training loop."""

from bpfn_cli.training.experiment import (
    Outcome,
    plan_experiment,
    run_experiment,
    summary_line,
    teacher_at_hand,
    train_teacher,
)
from bpfn_cli.training.job import Experiment, open_training_data
from bpfn_cli.training.recipe import Recipe

__all__ = [
    "Experiment",
    "Outcome",
    "Recipe",
    "open_training_data",
    "plan_experiment",
    "run_experiment",
    "summary_line",
    "teacher_at_hand",
    "train_teacher",
]
