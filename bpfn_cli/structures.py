# SPDX-License-Identifier: MIT
"""What travels between the layers: a camera, a scene, a batch, the point pyramid and the flow pyramid.

Everything is in metres, in the frame x left, y up, z forward; layout (B, N, C).
Importable without torch: tensors are only named here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

LEVELS = 4  # levels with a flow; the encoder has one more below them


@dataclass(frozen=True)
class Camera:
    """A pinhole camera for the 2D metrics: `u = (focal X + cx Z + tx) / (Z + tz)`, the same for v with y.

    Attributes: focal, cx, cy in pixels; (tx, ty, tz): last column of the projection matrix.
        `focal` is negative because x points left and y up.
    """

    focal: float
    cx: float
    cy: float
    tx: float = 0.0
    ty: float = 0.0
    tz: float = 0.0


MAX_DEPTH_M = 35.0  # where the field cuts FlyingThings3D and KITTI
FLYINGTHINGS3D_AXES = np.array([-1, 1, -1], np.float32)  # on disk x right, y up, z negative forward
FLYINGTHINGS3D_CAMERA = Camera(focal=-1050.0, cx=479.5, cy=269.5)


@dataclass(frozen=True)
class Scene:
    """One pair of clouds with its true flow.

    Attributes:
        name: unique inside its dataset.
        pc1, pc2: (N, 3), (M, 3) float32 metres.
        flow: (N, 3) float32 metres, from pc1.
        camera: for the 2D metrics; None where no image stands behind the cloud.
        valid: (N,) bool, False where the true flow is unknown (occluded); None: all valid.
    """

    name: str
    pc1: np.ndarray
    pc2: np.ndarray
    flow: np.ndarray
    camera: Camera | None = None
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class FlowBatch:
    """A batch of sampled scenes.

    Attributes:
        pc1, pc2, flow: (B, N, 3) metres.
        names, cameras: one a sample.
        valid: (B, N) bool, where the true flow is known; None: everywhere.
        view: names the draw of points and augmentation; with a sample's name it says all of the sample. None: unknown.
        first, whole: where several processes share a batch: the number of the first sample here, and of all samples;
            first == whole: a process without a sample, which computes another's for nothing. None: all are here.
    """

    pc1: Tensor
    pc2: Tensor
    flow: Tensor
    names: tuple[str, ...]
    cameras: tuple[Camera | None, ...] = ()
    valid: Tensor | None = None
    view: str | None = None
    first: int = 0
    whole: int | None = None

    @property
    def share(self) -> float:
        """The part of the whole batch's samples that counts here."""
        if self.whole is None:
            return 1.0
        return 0.0 if self.first >= self.whole else len(self.names) / self.whole

    def to(self, device: torch.device | str) -> FlowBatch:
        """The same batch on another device. From pinned memory the copy does not hold up what follows."""
        pc1, pc2, flow = (tensor.to(device, non_blocking=True) for tensor in (self.pc1, self.pc2, self.flow))
        valid = None if self.valid is None else self.valid.to(device, non_blocking=True)
        return replace(self, pc1=pc1, pc2=pc2, flow=flow, valid=valid)

    def parts(self, count: int) -> list[FlowBatch]:
        """The samples dealt to at most `count` batches as equal in size as can be, none of them empty."""
        samples = len(self.names)
        edges = [index * samples // count for index in range(count + 1)]
        return [self.of_samples(start, end) for start, end in pairwise(edges) if end > start]

    def of_samples(self, start: int, end: int) -> FlowBatch:
        """The samples from `start` up to `end`, this one left out."""
        return replace(
            self,
            pc1=self.pc1[start:end],
            pc2=self.pc2[start:end],
            flow=self.flow[start:end],
            names=self.names[start:end],
            cameras=self.cameras[start:end],
            valid=None if self.valid is None else self.valid[start:end],
        )

    def pin_memory(self) -> FlowBatch:
        """The same batch in memory that a GPU copies from directly; `DataLoader` calls this."""
        pc1, pc2, flow = (tensor.pin_memory() for tensor in (self.pc1, self.pc2, self.flow))
        return replace(self, pc1=pc1, pc2=pc2, flow=flow, valid=None if self.valid is None else self.valid.pin_memory())


@dataclass(frozen=True)
class CloudPyramid:
    """The geometry of one cloud (or of a batch of clouds) at all levels; a function of coordinates alone.

    Attributes:
        points: level l -> (B, N_l, 3), l = 0..4; level l+1 are farthest point samples of level l.
        sample_indices: level l -> (B, N_l) indices into level l-1, l = 1..4.
        down_neighbors: level l -> (B, N_l, 16) neighbors in level l-1 of the points of level l, l = 1..4.
        up_neighbors: level l -> (B, N_l, 3) neighbors in level l+1, l = 0..3.
        up_weights: level l -> (B, N_l, 3) inverse-distance weights of `up_neighbors`, sum 1.
        self_neighbors: level l -> (B, N_l, 9) neighbors inside level l, l = 0..3; empty where unused.
    """

    points: dict[int, Tensor]
    sample_indices: dict[int, Tensor]
    down_neighbors: dict[int, Tensor]
    up_neighbors: dict[int, Tensor]
    up_weights: dict[int, Tensor]
    self_neighbors: dict[int, Tensor]


@dataclass(frozen=True)
class PointPyramid:
    """Geometry of both clouds, made once per batch and shared by teacher and student.

    Attributes:
        stacked: both clouds in one batch of 2B, source clouds first.
        source, target: the halves of `stacked` (views).
    """

    stacked: CloudPyramid
    source: CloudPyramid
    target: CloudPyramid


@dataclass(frozen=True)
class FlowPyramid:
    """What the network returns, finest level first (l = 0..3).

    Attributes:
        flows: l -> (B, N_l, 3) metres.
        sample_indices1, sample_indices2: l = 1..4 -> (B, N_l) indices into level l-1 of cloud 1, 2.
        bfe_source, bfe_target: l -> (B, N_l, C_l) bidirectional features of source and target points.
        bfe_embedding: l -> (B, N_l, C_l) flow embedding at the source points.
        estimator_features: l -> (B, N_l, 64) features of the flow estimator.
        pyramid: the geometry used, to be handed to another network on the same clouds; None on the plain path, which
            shares nothing.
        bfe_neighbors: l -> (B, N_l, k) the target points each source point looked at, found after warping.
    """

    flows: list[Tensor]
    sample_indices1: dict[int, Tensor]
    sample_indices2: dict[int, Tensor]
    bfe_source: list[Tensor]
    bfe_target: list[Tensor]
    bfe_embedding: list[Tensor]
    estimator_features: list[Tensor]
    pyramid: PointPyramid | None
    bfe_neighbors: list[Tensor] = field(default_factory=list)

    def mapped(self, change: Callable[[int, Tensor], Tensor]) -> FlowPyramid:
        """The same output with flows and features changed: `change` is given the level and a tensor (B, N_l, C)."""

        def of(tensors: list[Tensor]) -> list[Tensor]:
            return [change(level, tensor) for level, tensor in enumerate(tensors)]

        return replace(
            self,
            flows=of(self.flows),
            bfe_source=of(self.bfe_source),
            bfe_target=of(self.bfe_target),
            bfe_embedding=of(self.bfe_embedding),
            estimator_features=of(self.estimator_features),
        )
