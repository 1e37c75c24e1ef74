# SPDX-License-Identifier: MIT
"""A variant is one value in one registry: every command knows a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bpfn_cli.cli.main import run
from bpfn_cli.models import VARIANTS, read_checkpoint

MODULE = """
from bpfn_cli.models import BASELINE, slim

VARIANT = slim(BASELINE, "throwaway", width=0.05, c_mid=1)
"""


@pytest.fixture
def variant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The name of a variant from a temporary module; the commands run in an empty folder."""
    module = ModuleType("throwaway")
    exec(MODULE, vars(module))
    monkeypatch.setitem(VARIANTS, module.VARIANT.name, module.VARIANT)
    monkeypatch.chdir(tmp_path)
    return module.VARIANT.name


def output(capsys: pytest.CaptureFixture[str], *words: Any) -> Any:
    assert run([*map(str, words)]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_profile_knows_a_new_variant(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = output(capsys, "profile", "--variant", variant, "--points", 1024, "--json")
    assert found["variant"] == variant
    assert found["parameters"] > 0


def test_all_variants_include_a_new_one(variant: str) -> None:
    from bpfn_cli.cli.network.tables import chosen_variants

    assert variant in [one.name for one in chosen_variants([], True, None)]


def test_slim_writes_a_new_variant_which_is_recognized_by_its_shapes(
    variant: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import torch

    found = output(capsys, "slim", "--variant", variant, "--json")
    assert (found["out"], found["variant"]) == (f"{variant}.safetensors", variant)
    read = read_checkpoint(tmp_path / f"{variant}.safetensors")
    torch.save(read.state, tmp_path / "weights.pth")
    assert read_checkpoint(tmp_path / "weights.pth").variant == read.variant == VARIANTS[variant]


def test_bench_measures_a_new_variant(
    variant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfn_cli.profiling.latency.peak_memories_mb", lambda *_, **__: [2.0])
    monkeypatch.setattr("bpfn_cli.profiling.latency.GEMM_SIZE", 64)
    monkeypatch.setattr("bpfn_cli.device.keep_freed_memory", lambda: True)
    words = ("--points", 1024, "--rounds", 1, "--no-plain", "--json")
    (found,) = output(capsys, "bench", "--variant", variant, *words)["results"]
    assert found["variant"] == variant


def test_train_plans_a_new_variant(variant: str, capsys: pytest.CaptureFixture[str], things: Path) -> None:
    words = ("--points", 1024, "--dry-run", "--json")
    found = output(capsys, "train", "--variant", variant, "--data", things, *words)
    assert variant in json.dumps(found)


def test_misspelled_name_of_a_new_variant_gets_a_hint(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", "--variant", f"{variant}s"]) == 2
    assert variant in capsys.readouterr().err
