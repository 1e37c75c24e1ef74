# SPDX-License-Identifier: MIT
"""Recipes, run folders and the training loop."""

from bpfn_cli.training.experiment import Experiment, run_experiment
from bpfn_cli.training.recipe import Recipe

__all__ = ["Experiment", "Recipe", "run_experiment"]
