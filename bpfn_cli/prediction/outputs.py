# SPDX-License-Identifier: MIT
"""The files of a prediction."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpfn_cli.files import write_atomic
from bpfn_cli.prediction.motion import write_pose

if TYPE_CHECKING:
    from bpfn_cli.prediction.pair import Prediction


@dataclass(frozen=True)
class Outputs:
    """Where the results of a pair are written. residual: without the sensor's motion. pose: that motion."""

    flow: Path
    residual: Path | None = None
    pose: Path | None = None

    @classmethod
    def beside(cls, flow: Path, *, residual: bool, pose: bool) -> Outputs:
        """`NAME.residual.npy` and `NAME.pose.txt` beside `NAME.npy`."""
        stem = flow.with_suffix("")
        return cls(
            flow,
            stem.with_name(f"{stem.name}.residual.npy") if residual else None,
            stem.with_name(f"{stem.name}.pose.txt") if pose else None,
        )

    @property
    def paths(self) -> list[Path]:
        """All that are written."""
        return [path for path in (self.flow, self.residual, self.pose) if path is not None]

    def write(self, prediction: Prediction) -> None:
        """Raises: DiskError."""
        write_flow(self.flow, prediction.flow)
        if self.residual is not None and prediction.residual is not None:
            write_flow(self.residual, prediction.residual)
        if self.pose is not None and prediction.pose is not None:
            write_pose(self.pose, prediction.pose)


def write_flow(path: Path, flow: np.ndarray) -> None:
    """Write (N, 3) metres as a float32 `.npy` file, atomically. Raises: DiskError."""
    buffer = io.BytesIO()
    np.save(buffer, flow.astype(np.float32, copy=False), allow_pickle=False)
    write_atomic(path, buffer.getvalue())
