# SPDX-License-Identifier: MIT
"""The network that a command predicts with: a checkpoint, an exported one, or the one that comes with bpfn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bpfn_cli.errors import UsageError, printable
from bpfn_cli.precision import Precision

if TYPE_CHECKING:
    import torch

    from bpfn_cli.models.predict import FlowNetwork


class ReadNetwork(NamedTuple):
    """A network, the file of its weights, the points of each cloud that it sees at a time, and where it runs."""

    path: Path
    network: FlowNetwork
    points: int
    device: torch.device


def read_network(
    checkpoint: Path | None, *, points: int | None, device: str, precision: Precision = Precision.float32
) -> ReadNetwork:
    """Args: checkpoint: None: the default one that comes with bpfn. points, device, precision: as the user gives them.

    Raises: CheckpointError: it cannot be read. UsageError: an ONNX file cannot run so, or no such device.
    """
    from bpfn_cli.cli.results.evaluate import read_weights
    from bpfn_cli.device import resolve_device
    from bpfn_cli.models import build_from
    from bpfn_cli.models.exported import ONNX_SUFFIX, read_onnx

    chosen = resolve_device(device)
    if checkpoint is None or checkpoint.suffix != ONNX_SUFFIX:
        path, read = read_weights(checkpoint)
        return ReadNetwork(path, build_from(read).to(chosen), points or read.num_points, chosen)
    onnx = read_onnx(checkpoint)
    if device not in ("auto", "cpu") or precision is not Precision.float32:
        raise UsageError(f"{printable(checkpoint)}: an ONNX file runs on the CPU, in float32; leave out the flag")
    if points and onnx.points not in (None, points):
        raise UsageError(f"--points {points}: {printable(checkpoint)} takes {onnx.points}")
    return ReadNetwork(checkpoint, onnx, points or onnx.points or onnx.num_points, resolve_device("cpu"))
