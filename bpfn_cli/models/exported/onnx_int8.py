# SPDX-License-Identifier: MIT
"""Turn the matrix products of an ONNX graph into int8, with the quantizer of onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import MinMaxCalibrater, PercentileCalibrater, TensorData, TensorsData

from bpfn_cli.choices import Calibration
from bpfn_cli.errors import CheckpointError, OutOfMemoryError, means_out_of_memory
from bpfn_cli.files import disk_errors
from bpfn_cli.models.exported.base import Clouds
from bpfn_cli.models.fake_quantization import RANGES, Ranges, is_quantized

PERCENTILE = 99.99  # of the values of a tensor lie inside its range
PRODUCT = "MatMul"


def products(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """The matrix products to quantize, by layer; a layer of both clouds has two or more."""
    found: dict[str, list[onnx.NodeProto]] = {}
    constants = {one.name for one in model.graph.initializer}
    for node in model.graph.node:
        layer = node.name.split("/")[0]
        if node.op_type == PRODUCT and node.input[1] in constants and is_quantized(layer):
            found.setdefault(layer, []).append(node)
    return found


def calibrate(model: onnx.ModelProto, scenes: Sequence[Clouds], method: Calibration) -> Ranges:
    """Measure the ranges of the inputs of the layers, by running the graph on scenes. Raises: OutOfMemoryError."""
    with tempfile.TemporaryDirectory() as folder, _silence():
        path = Path(folder) / "model.onnx"
        with disk_errors(path):
            onnx.save(model, path)
        inputs = {node.input[0] for nodes in products(model).values() for node in nodes}
        calibrator = _CALIBRATORS[method](path, inputs, Path(folder) / "augmented.onnx")
        for clouds in scenes:  # one by one: all values of a call are in memory until it has a histogram
            try:
                calibrator.collect_data(_Reader(clouds))
            except Exception as error:  # onnxruntime has a class for each kind, without a common base
                if isinstance(error, MemoryError) or means_out_of_memory(str(error)):
                    problem = f"calibrating with {len(clouds[0])} points: out of memory"
                    raise OutOfMemoryError(f"{problem}; use fewer --points") from None
                raise
        found = calibrator.compute_data()
    ranges = {}
    for layer, nodes in products(model).items():
        ends = [found[node.input[0]].range_value for node in nodes]
        ranges[layer] = min(0.0, *(np.min(low) for low, _ in ends)), max(0.0, *(np.max(high) for _, high in ends))
    return ranges


def quantize(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """The graph with int8 weights, a scale for each output channel, and 8-bit inputs of the layers.

    Args: ranges: of each layer. Raises: CheckpointError: one is missing.
    """
    layers = products(model)
    if missing := sorted(layers.keys() - ranges.keys()):
        raise CheckpointError(f"{RANGES}: no range of {missing[0]}; calibrate it instead (--calibrate percentile)")
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    inputs = _separate_inputs(copied, ranges)
    tensors = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (_, (low, high)) in inputs.items()
    }
    with _silence():
        quantizer = QDQQuantizer(
            copied,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
            nodes_to_quantize=[node.name for nodes in layers.values() for node in nodes],
            nodes_to_exclude=[],
            op_types_to_quantize=[PRODUCT],
            extra_options={"OpTypesToExcludeOutputQuantization": [PRODUCT], "MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
    result = quantizer.model.model
    for node in result.graph.node:
        if node.op_type == "QuantizeLinear":
            node.input[0] = inputs[node.input[0]][0]
    _replace_nodes(result, _in_order(node for node in result.graph.node if node.output[0] not in inputs))
    return result


def _in_order(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes with those that quantize, which the library appends, before the first that uses them.

    The library's own sorting does not know what the body of a Scan takes from outside.
    """
    new, others = {}, []
    for node in nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            new[node.output[0]] = node
        else:
            others.append(node)
    ordered: list[onnx.NodeProto] = []

    def add(node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in new:
                add(new.pop(name))
        ordered.append(node)

    for node in others:
        add(node)
    return ordered


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _separate_inputs(model: onnx.ModelProto, ranges: Ranges) -> dict[str, tuple[str, tuple[float, float]]]:
    """Give the layers inputs of their own, since the library rounds a tensor for all that use it.

    Returns: by the name of an input: the tensor that it copies, and its range.
    """
    layers = {node.name: layer for layer, nodes in products(model).items() for node in nodes}
    inputs: dict[str, tuple[str, tuple[float, float]]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name in layers:
            name = next((name for name, one in inputs.items() if one == (node.input[0], ranges[layers[node.name]])), "")
            if not name:
                name = f"{node.name}/input"
                inputs[name] = node.input[0], ranges[layers[node.name]]
                nodes.append(onnx.helper.make_node("Identity", [node.input[0]], [name], name=name))
            node.input[0] = name
        nodes.append(node)
    _replace_nodes(model, nodes)
    return inputs


class _OfInputs:
    """Makes a calibrator measure some tensors alone; by itself it takes the inputs and outputs of all products."""

    def __init__(self, path: Path, tensors: set[str], augmented: Path, **options: Any):
        super().__init__(path, [PRODUCT], augmented, symmetric=False, **options)  # type: ignore[call-arg]
        self._tensors = tensors
        self.augment_graph()  # type: ignore[attr-defined]
        self.create_inference_session()  # type: ignore[attr-defined]

    def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, Any]]:
        return self._tensors, super().select_tensors_to_calibrate(model)[1]  # type: ignore[misc]


class _MinMax(_OfInputs, MinMaxCalibrater):
    pass


class _Percentile(_OfInputs, PercentileCalibrater):
    def __init__(self, *places: Any):
        super().__init__(*places, percentile=PERCENTILE)


_CALIBRATORS = {"minmax": _MinMax, "percentile": _Percentile}


class _Reader(CalibrationDataReader):
    """One pair of clouds."""

    def __init__(self, clouds: Clouds):
        self._left: list[dict[str, Any]] = [{name: x[None] for name, x in zip(("pc1", "pc2"), clouds, strict=True)}]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide what the library prints, and its advice to optimize the graph first."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
