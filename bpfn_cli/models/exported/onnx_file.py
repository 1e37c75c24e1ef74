# SPDX-License-Identifier: MIT
"""ONNX files: written by `onnx_network`, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpfn_cli.errors import (
    CheckpointError,
    OutOfMemoryError,
    ShapeError,
    UsageError,
    means_out_of_memory,
    printable,
)
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.checkpoint import header_text, parse_header, read_weights_file
from bpfn_cli.models.exported.base import Format, Request, Runner
from bpfn_cli.ops.pyramid import check_clouds
from bpfn_cli.structures import FlowPyramid

if TYPE_CHECKING:
    import onnxruntime

SUFFIX = ".onnx"
_METADATA_KEY = "bpfn"
INSTALL = 'pip install -c constraints.txt -e ".[export]"'


class Onnx(Format):
    """ONNX with standard operators only."""

    name = "onnx"
    suffix = SUFFIX
    title = "ONNX, run by onnxruntime"
    stores = (*Format.stores, "int8")
    computes_int8 = True

    def write(self, model: BiPointFlowNet, request: Request) -> bytes:
        """The content of the file. Raises: UsageError: onnx is missing, or a layer that it does not know."""
        try:
            import onnx  # noqa: F401
        except ImportError:
            raise UsageError(f"writing ONNX files needs onnx: {INSTALL}") from None
        from bpfn_cli.models.exported.onnx_network import record_network

        if request.stored == "int8":
            try:
                from bpfn_cli.models.exported.onnx_int8 import calibrate, quantize
            except ImportError:
                raise UsageError(f"quantizing ONNX files needs onnxruntime: {INSTALL}") from None

        about = {
            _METADATA_KEY: header_text(model, request.metadata),
            "inputs": "pc1, pc2: float32 (1, N, 3), metres, x left, y up, z forward",
            "outputs": "flow: float32 (1, N, 3), metres, from pc1 to pc2, one row for each of pc1",
        }
        if request.stored != "int8":
            return record_network(model, request.points, about, request.stored).SerializeToString()
        graph = record_network(model, request.points, about)
        ranges = request.ranges or calibrate(graph, request.scenes, request.calibration)
        return quantize(graph, ranges).SerializeToString()

    def read(self, content: bytes, name: str) -> Runner:
        """The network in a file. Raises: as `OnnxNetwork`."""
        network = OnnxNetwork(content, name)
        return lambda pc1, pc2: network(pc1, pc2).flows[0]


class OnnxNetwork:
    """A network that onnxruntime runs on a CPU; `FlowPredictor` takes it in place of a `BiPointFlowNet`.

    Attributes: variant, num_points: as there. points: the number of points that it accepts; None: any.
    Raises: UsageError: onnxruntime is missing. CheckpointError: not written by `bpfn export`, or it cannot be run.
    """

    def __init__(self, content: bytes, name: str):
        self._session = _session(content, name)
        about = self._session.get_modelmeta().custom_metadata_map.get(_METADATA_KEY)
        if about is None:
            raise CheckpointError(f"{name}: an ONNX file that `bpfn export` did not write; export a checkpoint")
        try:
            fields = json.loads(about)
        except (ValueError, RecursionError):
            fields = None
        header = parse_header(fields, name)
        self.variant, self.num_points = header.variant.variant(), header.num_points
        inputs = {one.name: one.shape for one in self._session.get_inputs()}
        outputs = [one.name for one in self._session.get_outputs()]
        shapes = list(inputs.values())
        if list(inputs) != ["pc1", "pc2"] or outputs != ["flow"] or len(shapes[0]) != 3 or shapes[0] != shapes[1]:
            raise CheckpointError(f"{name}: its inputs and outputs are not those of `bpfn export`; export it again")
        self.points: int | None = shapes[0][1] if isinstance(shapes[0][1], int) else None

    def __call__(self, pc1: Tensor, pc2: Tensor) -> FlowPyramid:
        """The flow from `pc1` to `pc2`, (1, N, 3) metres; the result has no other levels and no features.

        Raises: ShapeError: another number of points, or not finite. OutOfMemoryError.
        """
        check_clouds(pc1, pc2, self.variant.least_points)
        if self.points not in (None, pc1.shape[1]):
            advice = "use larger clouds, or export it with --points dynamic"
            raise ShapeError(f"this ONNX file takes {self.points} points, not {pc1.shape[1]}; {advice}")
        clouds = {name: cloud.float().cpu().numpy() for name, cloud in (("pc1", pc1), ("pc2", pc2))}
        try:
            flow = torch.from_numpy(self._session.run(["flow"], clouds)[0])
        except Exception as error:  # onnxruntime has a class for each kind, without a common base
            if means_out_of_memory(str(error)):
                raise OutOfMemoryError(f"{pc1.shape[1]} points do not fit in memory; use fewer --points") from None
            raise
        return FlowPyramid([flow], {}, {}, [], [], [], [], None)


def read_onnx(path: Path) -> OnnxNetwork:
    """Raises: CheckpointError: missing. Others: as `OnnxNetwork`."""
    return OnnxNetwork(read_weights_file(path), printable(path))


def _session(content: bytes, name: str) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{name}: running ONNX files needs onnxruntime: {INSTALL}") from None
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is in the exception
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        fault = printable(" ".join(str(error).split()))[:200]
        raise CheckpointError(f"{name}: onnxruntime {onnxruntime.__version__} cannot run it ({fault})") from None
