# SPDX-License-Identifier: MIT
"""The choices of the command line are those that the code behind them knows."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from bpfn_cli import choices
from bpfn_cli.frames import FRAMES
from bpfn_cli.recipes.early_stop import EarlyStopSettings
from bpfn_cli.recipes.recipe import TrainSettings
from bpfn_cli.strategies import STRATEGIES


@pytest.mark.parametrize(("choice", "registry"), [(choices.Strategy, STRATEGIES), (choices.Frame, FRAMES)])
def test_choices_are_the_names_of_their_registry(choice: Any, registry: dict[str, Any]) -> None:
    assert sorted(get_args(choice)) == sorted(registry)


@pytest.mark.parametrize(
    ("settings", "key", "choice"),
    [
        (EarlyStopSettings, "kind", choices.EarlyStop),
        (TrainSettings, "validation_calendar", choices.ValidationCalendar),
        (TrainSettings, "select_on", choices.Selection),
    ],
)
def test_choices_are_those_of_the_recipe(settings: type, key: str, choice: Any) -> None:
    assert get_type_hints(settings)[key] == choice
