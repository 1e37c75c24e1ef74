# SPDX-License-Identifier: MIT
"""Training for int8: rounded layers, ranges that are resumed, weights on a grid, and the int8 file of the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_runs import (
    NAME,
    StopAfter,
    digest,
    digest_of_uninterrupted,
    job_for,
    metrics_of,
    record_of,
    resume_run,
    small_recipe,
    train_run,
)
from tiny_world import BIG, LEAST, Quiet, Scenes, tiny_network, write_things

from bpfn_cli.config import Tree
from bpfn_cli.errors import Interrupted, UsageError
from bpfn_cli.models import build_from, export, read_checkpoint, save_checkpoint
from bpfn_cli.models.exported import OnnxNetwork, Pair
from bpfn_cli.models.fake_quantization import add_quantizers, parse_ranges, round_weights, set_ranges
from bpfn_cli.recipes.identity import decisive_tree
from bpfn_cli.recipes.reading import checked_recipe
from bpfn_cli.recipes.recipe import Recipe
from bpfn_cli.training import run

pytestmark = pytest.mark.usefixtures("one_thread")

QUANTIZED = {"epochs": 2, "quantize": "int8"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("things"))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a student that a float teacher taught."""
    runs = tmp_path_factory.mktemp("runs")
    save_checkpoint(runs / "teacher.safetensors", tiny_network(1, BIG))
    recipe = small_recipe(loss=["basic"], train=QUANTIZED)
    train_run(data, runs, recipe, teacher=runs / "teacher.safetensors")
    return runs


def test_run_and_checkpoint_say_how_it_was_trained(trained: Path) -> None:
    assert record_of(trained)["recipe"]["train"]["quantize"] == "int8"
    assert record_of(trained)["method"] == "basic+int8"
    found = read_checkpoint(trained / NAME / "student.safetensors")
    ranges = parse_ranges(found.metadata, "student")
    assert ranges is not None
    assert sum(low < high for low, high in ranges.values()) > 40


def test_written_weights_lie_on_the_grid(trained: Path) -> None:
    found = read_checkpoint(trained / NAME / "student.safetensors")
    add_quantizers(model := build_from(found))
    round_weights(model)
    assert all(torch.equal(tensor, found.state[name]) for name, tensor in model.state_dict().items())


def test_int8_file_computes_what_training_saw(trained: Path, tmp_path: Path) -> None:
    found = read_checkpoint(trained / NAME / "student.safetensors")
    ranges, scene = parse_ranges(found.metadata, "student"), Scenes(points=LEAST).load(0)
    assert ranges is not None
    pair, path = Pair("scene", scene.pc1, scene.pc2, scene.flow), tmp_path / "f.onnx"
    (compared,) = export(build_from(found), path, pair, points=LEAST, stored="int8", ranges=ranges)
    assert compared.median_m < 0.1
    clouds = [torch.from_numpy(cloud)[None] for cloud in (scene.pc1, scene.pc2)]
    add_quantizers(fake := build_from(found))
    set_ranges(fake, ranges)
    with torch.no_grad():
        expected, plain = fake.eval()(*clouds).flows[0], build_from(found)(*clouds).flows[0]
        int8 = OnnxNetwork(path.read_bytes(), "f")(*clouds).flows[0]
    difference = (int8 - expected).norm(dim=-1).median()
    assert difference < 0.2 * (plain - expected).norm(dim=-1).median()  # of rounding the inputs of layers
    whole = onnx.load(path)
    scales = {
        np.float32(onnx.numpy_helper.to_array(one))
        for one in whole.graph.initializer
        if one.name.endswith("_scale") and not one.dims
    }
    assert scales - {1} == {np.float32((high - low) / 255) for low, high in ranges.values()} - {0}


def test_interrupted_training_gives_the_same_weights_and_ranges(data: Path, tmp_path: Path) -> None:
    recipe = small_recipe(train=QUANTIZED)
    expected = digest_of_uninterrupted(data, tmp_path / "whole", recipe)
    with pytest.raises(Interrupted):
        run(job_for(data, tmp_path / "parts", recipe, stop=StopAfter(3)), Quiet())
    resume_run(tmp_path / "parts")
    assert digest(tmp_path / "parts") == expected
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    whole, parts = (read_checkpoint(tmp_path / one / NAME / "student.safetensors") for one in ("whole", "parts"))
    assert whole.metadata["int8_ranges"] == parts.metadata["int8_ranges"]


def test_other_recipes_keep_their_identity_and_teachers_stay_float() -> None:
    assert "quantize" not in decisive_tree(Recipe())["train"]
    assert small_recipe(train=QUANTIZED).for_teacher().train.quantize is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"kind": "online"}}, "does not work with strategy online; use plain or self"),
        ({"strategy": {"kind": "meta"}}, "does not work with strategy meta"),
        ({"strategy": {"kind": "netaug"}}, "does not work with strategy netaug"),
        ({"train": {"quantize": "int8", "precision": "bf16"}}, "leave train.precision at 32, not bf16"),
    ],
)
def test_what_does_not_work_with_int8_is_refused(changes: dict[str, object], message: str) -> None:
    tree: dict[str, object] = {"train": {"quantize": "int8"}, **changes}
    with pytest.raises(UsageError, match=f"train.quantize int8: {message}"):
        checked_recipe(Tree(tree, {}, "recipe"))


def test_several_processes_are_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfn_cli.distributed.size", lambda: 2)
    with pytest.raises(UsageError, match="ranges belong to one process"):
        run(job_for(data, tmp_path, small_recipe(train=QUANTIZED)), Quiet())


@pytest.mark.slow
def test_self_distillation_works(data: Path, tmp_path: Path) -> None:
    train_run(data, tmp_path, small_recipe(strategy={"kind": "self"}, train=QUANTIZED))
    assert "int8_ranges" in read_checkpoint(tmp_path / NAME / "student.safetensors").metadata
