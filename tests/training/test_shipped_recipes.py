# SPDX-License-Identifier: MIT
"""Every recipe in configs/ loads, and its first line is the command that runs it."""

from pathlib import Path

import pytest

from bpfn_cli.training.load import load_recipe
from bpfn_cli.training.recipe import Recipe
from bpfn_cli.training.study import cells_of, read_study

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
STUDIES = sorted(FOLDER.glob("studies/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_recipe_loads_and_names_its_command(path):
    load_recipe(path, [], {})
    first = path.read_text().splitlines()[0]
    assert first.startswith("# bpfn ")
    assert f"configs/{path.name}" in first


def test_synthetic_recipe_is_the_embedded_default():
    assert load_recipe(CONFIGS[-1].with_name("synthetic.yaml"), [], {}) == Recipe()
    assert len(CONFIGS) == 3


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_study_loads_and_names_its_command(path):
    assert cells_of(read_study(path))
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# bpfn compare configs/studies/{path.name}")
