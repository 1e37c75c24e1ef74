# SPDX-License-Identifier: MIT
"""Parity with golden files of an independent implementation: outputs, sample indices, parameter names and shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_models import GOLDEN, filled_model

from bpfn_cli.models import BiPointFlowNet, build_model, load_checkpoint, save_published
from bpfn_cli.models.reference import ReferenceNetwork
from bpfn_cli.structures import FlowPyramid

FILES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
SMALL = [name for name in FILES if name.endswith("_2048")]
STATE_DICTS = json.loads((GOLDEN / "state_dicts.json").read_text())
F64, F32 = (torch.float64, 1e-6, 1e-5), (torch.float32, 1e-5, 1e-3)  # type, bounds of the median and 99 % of the errors


def cases() -> Iterator[Any]:
    """All files and both networks; by default those that cover every kind of layer once."""
    for name in FILES:
        for network in (BiPointFlowNet, ReferenceNetwork) if name in SMALL else (BiPointFlowNet,):
            for bounds in (F64, F32):
                fast = network is BiPointFlowNet
                quick = name == ("half_2048" if fast else "weightnet4_2048") and bounds is F64
                quick = quick or (fast and (name, bounds) == ("weightnet48_2048", F32))
                marks = () if quick else pytest.mark.slow
                yield pytest.param(name, network, *bounds, marks=marks, id=f"{name}-{network.__name__}-{bounds[0]}")


def variant_of(name: str) -> tuple[str, bool | None]:
    return ("baseline", True) if name == "baseline_bn" else (name, None)


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if "weightnet" in one else ()) for one in STATE_DICTS]
)
def test_published_network_can_load_what_save_published_writes(tmp_path: Path, name: str) -> None:
    """Its `load_state_dict` with strict=True needs exactly these names and shapes."""
    base, bn = variant_of(name)
    model = build_model(base, bn=bn)
    for index, buffer in enumerate(model.buffers()):  # running statistics differ from their first values
        buffer.fill_(index + 1)
    save_published(tmp_path / "x.pth", model)
    written = torch.load(tmp_path / "x.pth", weights_only=True)
    assert {key: list(tensor.shape) for key, tensor in written.items()} == STATE_DICTS[name]
    again = load_checkpoint(tmp_path / "x.pth")
    assert again.variant == model.variant
    for key, tensor in model.state_dict().items():
        for found in (written[key], again.state_dict()[key]):
            assert found.dtype == tensor.dtype and torch.equal(found, tensor), key


def run(name: str, dtype: torch.dtype, network: type[BiPointFlowNet]) -> tuple[FlowPyramid, dict[str, np.ndarray]]:
    variant, points = name.rsplit("_", 1)
    base, bn = variant_of(variant)
    model = filled_model(base, int(points), bn, network=network).to(dtype)
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    clouds = (torch.from_numpy(golden[key])[None].to(dtype) for key in ("pc1", "pc2"))
    with torch.no_grad():
        return model(*clouds), golden


def relative_errors(output: FlowPyramid, golden: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Array name -> relative error of each point; every float array of the file but the inputs is compared."""
    found = {}
    for level in range(4):
        found[f"flow_l{level}"] = output.flows[level][0].numpy()
        for key, features in (
            ("source", output.bfe_source),
            ("target", output.bfe_target),
            ("embedding", output.bfe_embedding),
        ):
            found[f"bfe_l{level}_{key}"] = features[level][0].numpy()
    errors = {}
    for key, values in found.items():
        if key not in golden:
            continue
        expected = golden[key] if key.startswith("flow") else golden[key].T  # bfe: [C, first points]
        assert values.shape[1] == expected.shape[1]
        difference = np.linalg.norm(values[: len(expected)] - expected, axis=1)
        errors[key] = difference / np.linalg.norm(expected, axis=1)
    return errors


def test_golden_files_are_there() -> None:
    assert len(FILES) == 7
    assert set(STATE_DICTS) >= {"baseline", "half"}


@pytest.mark.parametrize(("name", "network", "dtype", "median", "most"), [*cases()])
def test_outputs_equal_the_golden_ones(
    name: str, network: type[BiPointFlowNet], dtype: torch.dtype, median: float, most: float
) -> None:
    output, golden = run(name, dtype, network)
    errors = relative_errors(output, golden)
    assert {f"flow_l{level}" for level in range(4)} <= errors.keys()
    assert len(errors) >= 4 + (12 if name in SMALL else 0)
    for key, error in errors.items():
        assert np.median(error) <= median, key
        assert np.quantile(error, 0.99) <= most, key
    for level in (1, 2, 3):
        for cloud, indices in ((1, output.sample_indices1), (2, output.sample_indices2)):
            assert np.array_equal(indices[level][0].numpy(), golden[f"fps{cloud}_l{level}"])


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dict_has_the_published_names_and_shapes(name: str) -> None:
    variant, bn = variant_of(name)
    with torch.device("meta"):
        state = build_model(variant, bn=bn).state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == STATE_DICTS[name]
