# SPDX-License-Identifier: MIT
"""ONNX files that compute in int8."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_world import LEAST, Scenes, tiny_network

from bpfn_cli.choices import Calibration
from bpfn_cli.errors import CheckpointError, UsageError
from bpfn_cli.models import VARIANTS, BiPointFlowNet, export, slim
from bpfn_cli.models.exported import FORMATS, OnnxNetwork, Pair, onnx_file
from bpfn_cli.models.exported.base import Clouds, Request
from bpfn_cli.models.exported.onnx_int8 import calibrate, products, quantize
from bpfn_cli.models.exported.onnx_network import record_network
from bpfn_cli.models.fake_quantization import (
    FakeQuantizer,
    Ranges,
    add_quantizers,
    get_ranges,
    quantizers,
    round_weights,
)

ONNX = FORMATS["onnx"]
WIDE = slim(VARIANTS["weightnet4"], "wide", width=0.25)


@cache
def scenes(count: int = 2) -> tuple[Clouds, ...]:
    loaded = [Scenes(names=tuple(map(str, range(count))), points=LEAST).load(index) for index in range(count)]
    return tuple((scene.pc1, scene.pc2) for scene in loaded)


@cache
def network() -> BiPointFlowNet:
    return tiny_network(variant=WIDE)


@cache
def graph() -> onnx.ModelProto:
    return record_network(network(), LEAST, {})


@cache
def measured(method: Calibration) -> Ranges:
    return calibrate(graph(), scenes(), method)


def flow(run: object, clouds: Clouds) -> np.ndarray:
    with torch.no_grad():
        return run(*(torch.from_numpy(cloud)[None] for cloud in clouds)).flows[0][0].numpy()  # type: ignore[operator]


def median_difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(one - other, axis=1)))


def test_only_layers_are_quantized() -> None:
    """Lists everything that an 8-bit value reaches: coordinates, distances and interpolations are not among it."""
    whole = quantize(graph(), measured("minmax"))
    eight_bit = {"QuantizeLinear", "DequantizeLinear"}
    bodies = [node.attribute[0].g for node in whole.graph.node if node.op_type == "Scan"]
    assert len(bodies) > 20
    assert not any(node.op_type in eight_bit for body in bodies for node in body.node)
    rounded = {name for node in whole.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    users = [node for node in whole.graph.node if rounded & set(node.input)]
    assert {node.op_type for node in users} == {"MatMul"}
    assert all(set(node.input) <= rounded for node in users)  # both factors
    add_quantizers(model := copy.deepcopy(network()))
    assert {node.name.split("/")[0] for node in users} == set(quantizers(model))
    kept = Counter(
        node.name.split("/")[0].split(".")[-1]
        for node in whole.graph.node
        if node.op_type == "MatMul" and node not in users and "/" in node.name and "." in node.name.split("/")[0]
    )
    assert set(kept) == {"0", "1", "2", "pos1", "pos2", "fc"}  # "0" to "2": of the WeightNets, and of the first layer
    assert [one.domain for one in whole.opset_import] == [""]
    onnx.checker.check_model(whole, full_check=True)


def test_weights_have_a_scale_for_each_output_channel() -> None:
    whole = quantize(graph(), measured("minmax"))
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in whole.graph.initializer}
    weights = {name: array for name, array in constants.items() if array.dtype == np.int8 and array.ndim == 2}
    assert weights
    for node in whole.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weight = weights[node.input[0]]
            assert constants[node.input[1]].shape == (weight.shape[1],)
            assert np.abs(weight.astype(int)).max(axis=0).min() == 127


def test_minmax_measures_what_the_layers_see() -> None:
    add_quantizers(model := copy.deepcopy(network()))

    def see(own: FakeQuantizer, x: torch.Tensor) -> torch.Tensor:
        own.low.copy_(torch.minimum(own.low, x.min()))
        own.high.copy_(torch.maximum(own.high, x.max()))
        return x

    for quantizer in quantizers(model).values():
        quantizer.weight = lambda weight: weight  # type: ignore[method-assign]
        quantizer.forward = partial(see, quantizer)  # type: ignore[method-assign]
    flow(model, scenes()[0])
    found, expected = calibrate(graph(), scenes()[:1], "minmax"), get_ranges(model)
    assert found == {name: pytest.approx(ends, rel=1e-3, abs=1e-6) for name, ends in expected.items()}


def test_percentile_gives_narrower_ranges() -> None:
    narrow, wide = measured("percentile"), measured("minmax")
    assert narrow.keys() == wide.keys()
    spans = np.array([[high - low for low, high in one.values()] for one in (narrow, wide)])
    assert (spans[0] <= spans[1] * 1.001).all()
    assert spans[0].sum() < 0.98 * spans[1].sum()


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_int8_file_is_small_and_close(method: Calibration) -> None:
    content = ONNX.write(network(), Request(LEAST, "int8", ranges=measured(method)))
    assert len(content) < 0.6 * len(ONNX.write(network(), Request(LEAST)))  # a small network, of much graph
    expected, found = flow(network(), scenes()[0]), flow(OnnxNetwork(content, "f"), scenes()[0])
    assert 0 < median_difference(found, expected) < 0.1 * np.median(np.linalg.norm(expected, axis=1))


def test_learned_ranges_are_used_and_give_what_training_saw() -> None:
    add_quantizers(trained := copy.deepcopy(network()))
    trained.train()
    for clouds in scenes():
        flow(trained, clouds)
    round_weights(trained.eval())
    plain = copy.deepcopy(network())
    plain.load_state_dict(trained.state_dict())
    ranges = get_ranges(trained)
    content = ONNX.write(plain, Request(LEAST, "int8", ranges=ranges))
    whole = onnx.load_from_string(content)
    scales = {
        float(onnx.numpy_helper.to_array(one))
        for one in whole.graph.initializer
        if one.name.endswith("_scale") and not one.dims
    }
    assert {np.float32((high - low) / 255) for low, high in ranges.values()} == {np.float32(one) for one in scales}
    clouds = scenes()[0]
    fake, other = flow(trained, clouds), ONNX.write(plain, Request(LEAST, "int8", ranges=measured("percentile")))
    found, calibrated = (flow(OnnxNetwork(one, "f"), clouds) for one in (content, other))
    assert median_difference(found, fake) < 0.5 * median_difference(calibrated, fake)
    assert median_difference(found, fake) < 0.5 * median_difference(flow(plain, clouds), fake)


def test_missing_range_is_refused() -> None:
    ranges = dict(list(measured("minmax").items())[1:])
    with pytest.raises(CheckpointError, match=r"int8_ranges: no range of .*--calibrate"):
        ONNX.write(network(), Request(LEAST, "int8", ranges=ranges))


@pytest.mark.slow
def test_every_layer_of_separable_networks_is_quantized() -> None:
    model = tiny_network(variant=slim(VARIANTS["declinear34"], "small", width=0.25, c_mid=2))
    layers = products(record_network(model, LEAST, {}))
    assert any(layer.endswith(".pointwise") for layer in layers)
    content = ONNX.write(model, Request(LEAST, "int8", scenes=scenes()))
    expected, found = flow(model, scenes()[0]), flow(OnnxNetwork(content, "f"), scenes()[0])
    assert median_difference(found, expected) < 0.2 * np.median(np.linalg.norm(expected, axis=1))


def pair() -> Pair:
    return Pair("scene", *scenes()[0])


def test_difference_above_the_tolerance_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not written: its flow differs by median"):
        export(
            network(),
            tmp_path / "f.onnx",
            pair(),
            points=LEAST,
            stored="int8",
            ranges=measured("minmax"),
            tolerance_m=1e-6,
        )
    assert list(tmp_path.iterdir()) == []


def test_too_few_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--scenes 2: calibration needs 4 scenes or more"):
        export(network(), tmp_path / "f.onnx", pair(), stored="int8", scenes=scenes())


@pytest.mark.parametrize("suffix", [".pth", ".pt2"])
def test_other_formats_have_no_int8(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--precision int8: a .* file has float32, float16, bfloat16"):
        export(network(), tmp_path / f"f{suffix}", pair(), stored="int8")


def test_missing_onnxruntime_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bpfn_cli.models.exported.onnx_int8")
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(UsageError, match="quantizing ONNX files needs onnxruntime") as caught:
        ONNX.write(network(), Request(LEAST, "int8", scenes=scenes()))
    assert str(caught.value).endswith(onnx_file.INSTALL)
