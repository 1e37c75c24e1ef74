# SPDX-License-Identifier: MIT
"""An ONNX graph, recorded node by node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 18  # of the standard operators; onnxruntime has it since 1.14
IR_VERSION = 8  # of the file format, the oldest with this opset
STORED = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


class Recorder:
    """Nodes and constants of a graph. A value is known by its name, a string.

    Args: stored: type in which `weight` stores, "float32", "float16" or "bfloat16"; a Cast returns it to float32.
    """

    def __init__(self, stored: str = "float32"):
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._stored, self._scope, self._numbers = stored, "", count(1)
        self._stored_names: dict[tuple[bytes, str, tuple[int, ...]], str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of the nodes recorded in the block start with `name`, a module of the network."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        yield
        self._scope = outer

    def body(self) -> Recorder:
        """An empty graph for the steps of a `scan`; it may use values of this one."""
        body = Recorder(self._stored)
        body._scope, body._numbers = f"{self._scope}body/", self._numbers
        return body

    def op(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        """Record a node; return the name of its output, or a tuple of names. name: in place of the scope."""
        name = f"{name}/{kind}_{next(self._numbers)}" if name else self._new_name(kind)
        names = [name] if outputs == 1 else [f"{name}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """A constant; equal ones are stored once."""
        return self._initializer(np.asarray(value, dtype), "constant")

    def weight(self, array: np.ndarray) -> str:
        """A weight, float32 for the nodes that use it; equal ones are stored once."""
        array = np.ascontiguousarray(array, np.float32)
        if self._stored == "float32" or array.ndim < 2:
            return self._initializer(array, "weight")
        stored = array.astype(helper.tensor_dtype_to_np_dtype(STORED[self._stored]))
        return self.op("Cast", self._initializer(stored, "weight"), to=TensorProto.FLOAT)

    def scan(
        self, body: Recorder, states: Sequence[tuple[str, str, str]], xs: Sequence[tuple[str, str]], y: str
    ) -> str:
        """Record a Scan over the first dimension of `xs`; return the stack of `y`.

        Args: states: the initial value, and its names at the start and at the end of a step. xs: what is scanned, and
            the name of its row in a step. y: of a step. Names from outside may be used in `body`.
        """
        inputs = [helper.make_empty_tensor_value_info(name) for name in (*(s[1] for s in states), *(x[1] for x in xs))]
        outputs = [helper.make_empty_tensor_value_info(name) for name in (*(s[2] for s in states), y)]
        graph = helper.make_graph(body.nodes, self._new_name("body"), inputs, outputs, body.initializers)
        names = [state[0] for state in states] + [x[0] for x in xs]
        found = self.op("Scan", *names, outputs=len(states) + 1, body=graph, num_scan_inputs=len(xs))
        return found if isinstance(found, str) else found[-1]

    def model(
        self, inputs: dict[str, list[int | str]], outputs: dict[str, str], about: dict[str, str]
    ) -> onnx.ModelProto:
        """The whole model. Args: inputs: shapes by name. outputs: values by the name that users see; of the shape of
        the first input. about: metadata."""
        shape = next(iter(inputs.values()))
        self.nodes += [helper.make_node("Identity", [value], [name], name=name) for name, value in outputs.items()]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (*inputs, *outputs)]
        graph = helper.make_graph(self.nodes, "bpfn", values[: len(inputs)], values[len(inputs) :], self.initializers)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="bpfn")
        helper.set_model_props(model, about)
        return model

    def _initializer(self, array: np.ndarray, kind: str) -> str:
        key = hashlib.sha256(array.tobytes()).digest(), str(array.dtype), array.shape
        if key not in self._stored_names:
            self._stored_names[key] = name = self._new_name(kind)
            self.initializers.append(onnx.numpy_helper.from_array(array, name))
        return self._stored_names[key]

    def _new_name(self, kind: str) -> str:
        return f"{self._scope}{kind}_{next(self._numbers)}"
