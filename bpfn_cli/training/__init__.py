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
from bpfn_cli.training.interruption import Interruption, parse_duration
from bpfn_cli.training.job import Experiment, open_training_data
from bpfn_cli.training.recipe import Recipe
from bpfn_cli.training.resume import Changes, resume

__all__ = [
    "Changes",
    "Experiment",
    "Interruption",
    "Outcome",
    "Recipe",
    "open_training_data",
    "parse_duration",
    "plan_experiment",
    "resume",
    "run_experiment",
    "summary_line",
    "teacher_at_hand",
    "train_teacher",
]
