# SPDX-License-Identifier: MIT
"""Recipes, run folders and the training loop."""

from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.training.job import Experiment, open_training_data
from bpfn_cli.training.pipeline import (
    Outcome,
    plan_experiment,
    run_experiment,
    teacher_at_hand,
    train_teacher,
)
from bpfn_cli.training.resume import Changes, resume
from bpfn_cli.training.stop import Interruption, parse_duration

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
    "teacher_at_hand",
    "train_teacher",
]
