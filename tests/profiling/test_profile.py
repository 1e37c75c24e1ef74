# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from command import bpfn, succeeded
from tiny_world import tiny_network
from torch import nn

from bpfn_cli.errors import UsageError
from bpfn_cli.models import BASELINE, VARIANTS, build_model, save_checkpoint, slim
from bpfn_cli.models.reference import ReferenceNetwork
from bpfn_cli.profiling import ModuleCounts, count_modules, list_tensors, profile_model
from bpfn_cli.profiling.profile import level_of, macs_of_call

README = Path(__file__).parents[2] / "README.md"
STATE_DICTS = Path(__file__).parents[1] / "golden" / "state_dicts.json"


@cache
def counted(variant: str) -> ModuleCounts:
    return count_modules(VARIANTS[variant], 8192)


@pytest.mark.parametrize(
    ("variant", "giga"), [("baseline", 13.36), ("weightnet8", 9.36), ("weightnet4", 7.37), ("weightnet48", 7.65)]
)
def test_module_macs_are_the_published_ones(variant: str, giga: float) -> None:
    assert counted(variant).macs.total() / 1e9 == pytest.approx(giga, abs=0.01)


def test_macs_of_a_call_by_hand() -> None:
    x = torch.zeros(2, 3, 5)
    layer = nn.Conv1d(3, 4, 1)
    assert macs_of_call(layer, layer(x)) == 2 * 4 * 5 * (3 + 1)
    bare = nn.Conv1d(3, 4, 1, bias=False)
    assert macs_of_call(bare, bare(x)) == 2 * 4 * 5 * 3
    depthwise = nn.Conv2d(6, 6, 1, groups=6)
    assert macs_of_call(depthwise, depthwise(torch.zeros(1, 6, 2, 2))) == 24 * (1 + 1)
    linear = nn.Linear(7, 2)
    assert macs_of_call(linear, linear(torch.zeros(5, 7))) == 10 * (7 + 1)
    assert macs_of_call(nn.LeakyReLU(), x) == 30
    assert macs_of_call(nn.BatchNorm1d(3), x) == 0


def convolution(outputs: int, inputs: int, places: int, activated: bool = True) -> int:
    """MACs of a 1x1 convolution with bias at `places`, and of the activation behind it."""
    return places * outputs * (inputs + 1 + activated)


def test_blocks_of_level_0_by_hand() -> None:
    """1024 points a cloud; 32 neighbors in the other cloud, 9 in its own."""
    counts = count_modules(VARIANTS["baseline"], 1024)
    both, across, around = 2 * 1024, 1024 * 32, 1024 * 9
    encoder = convolution(32, 3, both) + convolution(32, 32, both) + convolution(64, 32, both)
    assert encoder == 327_680 + 2_228_224 + 4_456_448
    context = convolution(32, 64, both)
    # Features of 32 + 32 channels of both clouds, projected for either direction; then once each for the embedding.
    projections = 4 * convolution(32, 64, 1024, activated=False) + 2 * convolution(32, 32, 1024, activated=False)
    # Three correlations: offsets to 32 channels, activated, and one more convolution.
    correlations = 3 * (convolution(32, 3, across) + convolution(32, 32, across))
    # Two PointConvs: weights from offsets (their ReLU is no module), then 16 x (128 + 3) numbers to 128.
    weights = around * (8 * (3 + 1) + 8 * (8 + 1) + 16 * (8 + 1))
    estimator = 2 * (weights + 1024 * 128 * (16 * 131 + 1 + 1))
    estimator += convolution(128, 128, 1024) + convolution(64, 128, 1024) + convolution(3, 64, 1024, activated=False)
    assert counts.macs[0] == encoder + context + projections + correlations + estimator == 725_011_456


def test_coarsest_level_by_hand() -> None:
    """Two clouds of 8 points, 16 neighbors, one PointConv of 512 + 3 channels."""
    counts = count_modules(VARIANTS["baseline"], 1024)
    weightnet = 2 * 8 * 16 * (8 * (3 + 1) + 8 * (8 + 1) + 16 * (8 + 1))
    linear = 2 * 8 * 256 * (16 * 515 + 1)
    assert counts.macs[4] == weightnet + linear + 2 * 8 * 256 == 33_822_720
    norms = 2 * (8 + 8 + 16)  # in the published checkpoint, unused
    assert counts.parameters[4] == 8 * (3 + 1) + 8 * (8 + 1) + 16 * (8 + 1) + norms + 256 * (16 * 515 + 1)


def readme_sizes() -> dict[str, tuple[str, str]]:
    """Variant -> parameters and MACs, as the README prints them."""
    rows = re.findall(
        r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \| ([\d.]+ G) \|$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (parameters, macs) for name, parameters, macs in rows}


def test_readme_names_every_variant() -> None:
    assert readme_sizes().keys() == VARIANTS.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_readme_prints_the_sizes_of_a_variant(variant: str) -> None:
    counts = counted(variant)
    assert (f"{counts.parameters.total():,}", f"{counts.macs.total() / 1e9:.2f} G") == readme_sizes()[variant]


@pytest.mark.parametrize("variant", ["half_bottleneck", "declinear"])
def test_levels_sum_to_the_total(variant: str) -> None:
    counts = count_modules(VARIANTS[variant], 1024)
    assert counts.points == (1024, 256, 64, 32, 8)
    parameters = sum(p.numel() for p in build_model(variant).parameters())
    assert counts.parameters.total() == parameters
    assert set(counts.parameters) == set(counts.macs) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("bn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_unused_parameters_by_hand(bn: bool) -> None:
    model = build_model("baseline", bn=bn)
    names = [n for n, _ in model.named_parameters() if n.endswith(("bias1", "bias2"))]
    # bias1 and bias2 of the four embeddings; without batch norm also weight and bias of all WeightNet norms.
    expected = 2 * (32 + 64 + 128 + 256)
    if not bn:
        expected += 12 * 2 * (8 + 8 + 16)  # 4 encoder and 8 estimator PointConvs
    assert len(names) == 8
    assert count_modules(model.variant, 1024).unused_parameters == expected


def test_layers_belong_to_the_level_in_their_name() -> None:
    names = {"level1_0.x": 1, "deconv3_2.x": 2, "cross0.x": 0, "flow3.x": 3, "level4.linear": 4}
    assert {name: level_of(name) for name in names} == names


@pytest.mark.parametrize("variant", ["weightnet4", pytest.param("declinear", marks=pytest.mark.slow)])
def test_profile_agrees_with_itself_with_torchs_counter_and_with_the_file(variant: str, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    profile = profile_model(VARIANTS[variant], 1024)
    levels = profile.levels
    assert sum(level.parameters for level in levels) == profile.parameters
    assert sum(level.module_macs for level in levels) == profile.module_macs
    assert sum(level.operator_macs for level in levels) == profile.operator_macs

    model = build_model(variant, 1024, network=ReferenceNetwork).eval()
    clouds = torch.rand(2, 1, 1024, 3, generator=torch.Generator().manual_seed(0)).unbind()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*clouds)
    points = (1024, 256, 64, 32)
    # torch counts no batch norm; fvcore a scale and a shift for each of the two of every estimator.
    norms = sum(2 * 2 * 128 * count for count in points)
    assert profile.operator_macs == counter.get_total_flops() // 2 + norms
    # Searches are listed, not counted.
    assert profile.uncounted["bpfn_reference::knn"] == 45
    assert profile.uncounted["bpfn_reference::farthest_point_sample"] == 8
    save_checkpoint(tmp_path / "m.safetensors", model)
    assert profile.checkpoint_bytes == (tmp_path / "m.safetensors").stat().st_size


@pytest.mark.parametrize("points", [0, -1, 1023])
def test_too_few_points_are_refused(points: int) -> None:
    with pytest.raises(UsageError, match=f"{points} points"):
        profile_model(VARIANTS["baseline"], points)


@pytest.mark.parametrize(("name", "printed_m"), [("baseline_bn", "7.98"), ("half", "3.73"), ("weightnet4", "2.74")])
def test_tensors_are_those_of_the_published_network(name: str, printed_m: str) -> None:
    """Report 6 prints 7.98 M for the network with batch norm, which counts the buffers."""
    expected = json.loads(STATE_DICTS.read_text())[name]
    found = list_tensors(slim(BASELINE, name, bn=True) if name == "baseline_bn" else VARIANTS[name])
    assert {one.name: list(one.shape) for one in found} == expected
    assert f"{sum(one.elements for one in found) / 1e6:.2f}" == printed_m
    model = build_model(name.removesuffix("_bn"), bn=name != "weightnet4")
    kinds = {one.name: one.kind for one in found}
    assert {kind for name, kind in kinds.items() if "running_" in name or "num_batches" in name} == {"buffer"}
    assert sum(one.elements for one in found if one.kind == "parameter") == sum(p.numel() for p in model.parameters())


def test_operators_of_clouds_that_take_too_long_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpfn_cli.profiling.profile.MOST_PLAIN_POINTS", 1023)
    monkeypatch.setattr("bpfn_cli.profiling.profile._operator_macs", None)
    profile = profile_model(VARIANTS["weightnet4"], 1024)
    assert profile.operator_macs is None and profile.levels[0].operator_macs is None
    assert profile.module_macs == sum(level.module_macs for level in profile.levels) > 0
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_network())
    monkeypatch.undo()
    words = ("profile", "--checkpoint", "tiny.safetensors", "--points", 40000)
    assert "so many points take too long; use 32,768 or fewer" in succeeded(bpfn(*words, cwd=tmp_path)).stdout


def test_profile_command_lists_tensors_with_totals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfn_cli.profiling.profile._operator_macs", lambda _: (Counter(), {}))  # takes seconds
    network = tiny_network()
    save_checkpoint(tmp_path / "tiny.safetensors", network)
    words = ("profile", "--checkpoint", "tiny.safetensors", "--points", 1024, "--tensors")
    found = json.loads(succeeded(bpfn(*words, "--json", cwd=tmp_path)).stdout)
    state = network.state_dict()
    assert [(one["name"], one["shape"]) for one in found["tensors"]] == [(n, list(t.shape)) for n, t in state.items()]
    assert all(one["elements"] == state[one["name"]].numel() for one in found["tensors"])
    totals = found["tensor_elements"]
    assert totals["parameter"] == found["parameters"] == sum(p.numel() for p in network.parameters())
    assert totals["total"] == totals["parameter"] + totals["buffer"] == sum(t.numel() for t in state.values())

    lines = succeeded(bpfn(*words, cwd=tmp_path)).stdout.splitlines()
    start = lines.index("Tensors of tiny: elements, name, shape") + 1
    first, shape = next(iter(state.items()))[0], list(next(iter(state.values())).shape)
    assert lines[start].split(maxsplit=2) == [f"{next(iter(state.values())).numel():,}", first, str(shape)]
    total = f"{totals['total']:,}  elements in {len(state)} tensors: {totals['parameter']:,} of parameters"
    assert total in lines[start + len(state)]
