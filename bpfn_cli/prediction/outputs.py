# SPDX-License-Identifier: MIT
"""The files of a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bpfn_cli.prediction.flow_files import write_flow
from bpfn_cli.prediction.motion import write_pose

if TYPE_CHECKING:
    from bpfn_cli.data.clouds.cloud import Cloud
    from bpfn_cli.prediction.pair import Prediction


@dataclass(frozen=True)
class Outputs:
    """Where the results of a pair are written. residual: without the sensor's motion. pose: that motion."""

    flow: Path
    residual: Path | None = None
    pose: Path | None = None

    @classmethod
    def beside(cls, flow: Path, *, residual: bool, pose: bool) -> Outputs:
        """`NAME.residual.npy` and `NAME.pose.txt` beside `NAME.npy`; the flows have the same ending."""
        stem = flow.with_suffix("")
        return cls(
            flow,
            stem.with_name(f"{stem.name}.residual{flow.suffix}") if residual else None,
            stem.with_name(f"{stem.name}.pose.txt") if pose else None,
        )

    @property
    def paths(self) -> list[Path]:
        """All that are written."""
        return [path for path in (self.flow, self.residual, self.pose) if path is not None]

    def write(self, prediction: Prediction, first: Cloud, frame: str) -> None:
        """Args: first: the cloud that moves. frame: of its points. Raises: DiskError."""
        write_flow(self.flow, prediction.flow, first.points, frame)
        if self.residual is not None and prediction.residual is not None:
            write_flow(self.residual, prediction.residual, first.points, frame)
        if self.pose is not None and prediction.pose is not None:
            write_pose(self.pose, prediction.pose)
