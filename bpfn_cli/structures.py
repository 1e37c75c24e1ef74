# SPDX-License-Identifier: MIT
"""What the packages exchange: a camera, a scene, a batch, the point pyramid and the flow pyramid.

Everything is in metres, in the frame x left, y up, z forward; layout (B, N, C).
Importable without torch, which appears in annotations only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from bpfn_cli.errors import DataError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

LEVELS = 4  # levels with a flow; the encoder has one more below them
ENCODER_FIELDS = ("encoder_source", "encoder_target")
BACKWARD_FIELD = "backward_errors"
# The fields of a `FlowPyramid` that hold a value for each point.
VALUE_FIELDS = (
    *("flows", "bfe_source", "bfe_target", "bfe_embedding", "estimator_features"),
    *(*ENCODER_FIELDS, BACKWARD_FIELD),
)


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


MAX_DEPTH_M = 35.0  # the customary cut of FlyingThings3D and KITTI
FLYINGTHINGS3D_AXES = np.array([-1, 1, -1], np.float32)  # on disk x right, y up, z backward
FLYINGTHINGS3D_CAMERA = Camera(focal=-1050.0, cx=479.5, cy=269.5)
DRIVING_CAMERA = Camera(focal=-721.5, cx=609.5, cy=172.9)  # KITTI's, which sees our driving scenes


@dataclass(frozen=True)
class Scene:
    """One pair of clouds, with its true flow if that is known.

    Attributes:
        name: unique inside its dataset. pc1, pc2: (N, 3), (M, 3) float32 metres.
        flow: (N, 3) float32 metres, from pc1; None: the scene has no labels.
        camera: for the 2D metrics; None if the cloud does not come from an image.
        valid: (N,) bool, False where the true flow is unknown (occluded); None: all valid.
        kept: (rows of the first cloud in its file,) bool, True for the N rows that are `pc1`; None: all.
        categories: (N,) uint8, what each point belongs to, as an index of Argoverse 2 (0: nothing); None: unknown.
        ego_motion: (4, 4) float64, maps static points of pc1 into the frame of pc2; None: unknown.
    """

    name: str
    pc1: np.ndarray
    pc2: np.ndarray
    flow: np.ndarray | None
    camera: Camera | None = None
    valid: np.ndarray | None = None
    kept: np.ndarray | None = None
    categories: np.ndarray | None = None
    ego_motion: np.ndarray | None = None

    @property
    def truth(self) -> np.ndarray:
        """The true flow. Raises: DataError: it is unknown."""
        if self.flow is None:
            raise DataError(f"scene {printable(self.name)}: its true flow is unknown; use scenes with labels")
        return self.flow


@dataclass(frozen=True)
class FlowBatch:
    """A batch of sampled scenes.

    Attributes:
        pc1, pc2: (B, N, 3) metres. names, cameras: one per sample.
        flow: (B, N, 3) metres; None: the samples have no labels.
        valid: (B, N) bool, where the true flow is known; None: everywhere.
        categories, ego_motion: (B, N) uint8 and (B, 4, 4) float64, as in `Scene`; None: unknown for a sample.
        view: identifies the draw of points and the augmentation; with a sample's name it determines the sample. None:
            unknown.
        first, whole: if several processes share a batch, the index of this process's first sample and the number of
            samples of all. first == whole: a process without samples, which repeats another's. None: all are here.
        total: samples of the optimizer step, if this is one of its `parts`; None: it is not.
    """

    pc1: Tensor
    pc2: Tensor
    flow: Tensor | None
    names: tuple[str, ...]
    cameras: tuple[Camera | None, ...] = ()
    valid: Tensor | None = None
    view: str | None = None
    first: int = 0
    whole: int | None = None
    total: int | None = None
    categories: Tensor | None = None
    ego_motion: Tensor | None = None

    @property
    def truth(self) -> Tensor:
        """The true flow. Raises: DataError: it is unknown."""
        if self.flow is None:
            names = printable(", ".join(self.names))
            raise DataError(f"scenes {names}: their true flow is unknown; use scenes with labels")
        return self.flow

    @property
    def step_samples(self) -> int:
        """The number of samples of the optimizer step, in all parts and processes."""
        return self.total or self.whole or len(self.names)

    @property
    def share(self) -> float:
        """The fraction of the whole batch's samples that count in this process."""
        if self.whole is None:
            return 1.0
        return 0.0 if self.first >= self.whole else len(self.names) / self.whole

    def to(self, device: torch.device | str) -> FlowBatch:
        """Move the batch to a device. From pinned memory the copy is asynchronous."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> FlowBatch:
        """Copy the batch to memory that a GPU reads directly; `DataLoader` calls this."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def parts(self, count: int) -> list[FlowBatch]:
        """Split the samples into at most `count` batches of nearly equal size, none of them empty."""
        edges = [index * len(self.names) // count for index in range(count + 1)]
        whole = replace(self, total=self.step_samples)
        return [whole.of_samples(start, end) for start, end in pairwise(edges) if end > start]

    def of_samples(self, start: int, end: int) -> FlowBatch:
        """The samples from `start` up to, not including, `end`."""
        part = self._with_tensors(lambda tensor: tensor[start:end])
        return replace(part, names=self.names[start:end], cameras=self.cameras[start:end])

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> FlowBatch:
        names = ("pc1", "pc2", "flow", "valid", "categories", "ego_motion")
        known = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **{name: change(tensor) for name, tensor in known.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class CloudPyramid:
    """The geometry of one cloud (or of a batch of clouds) at all levels; a function of coordinates alone.

    Attributes:
        points: level l -> (B, N_l, 3), l = 0..4; level l+1 are farthest point samples of level l.
        sample_indices: level l -> (B, N_l) indices into level l-1, l = 1..4.
        down_neighbors: level l -> (B, N_l, 16) neighbors in level l-1 of the points of level l, l = 1..4.
        up_neighbors: level l -> (B, N_l, 3) neighbors in level l+1, l = 0..3.
        up_weights: level l -> (B, N_l, 3) inverse-distance weights of `up_neighbors`, sum 1.
        self_neighbors: level l -> (B, N_l, 9) neighbors inside level l, l = 0..3; empty if unused.
    """

    points: dict[int, Tensor]
    sample_indices: dict[int, Tensor]
    down_neighbors: dict[int, Tensor]
    up_neighbors: dict[int, Tensor]
    up_weights: dict[int, Tensor]
    self_neighbors: dict[int, Tensor]

    def part(self, start: int, end: int) -> CloudPyramid:
        """The clouds from `start` up to, not including, `end` (views)."""
        by_level = (getattr(self, each.name) for each in fields(self))
        return CloudPyramid(*({level: x[start:end] for level, x in tensors.items()} for tensors in by_level))

    @classmethod
    def stack(cls, first: CloudPyramid, second: CloudPyramid) -> CloudPyramid:
        """Both in one batch, without their self_neighbors."""
        import torch

        def joined(name: str) -> dict[int, Tensor]:
            one, other = getattr(first, name), getattr(second, name)
            return {level: torch.cat([one[level], other[level]]) for level in one}

        names = [each.name for each in fields(cls) if each.name != "self_neighbors"]
        return cls(**{name: joined(name) for name in names}, self_neighbors={})


@dataclass(frozen=True)
class EncodedCloud:
    """All that a network computes from one cloud alone, for every pair in which it is the source or the target.

    Attributes:
        pyramid: with self_neighbors. features: (B, N_l, C_l) encoder features of levels 0 to 4.
    """

    pyramid: CloudPyramid
    features: list[Tensor]


@dataclass(frozen=True)
class PointPyramid:
    """Geometry of both clouds, computed once per batch and shared by teacher and student.

    Attributes:
        stacked: both clouds in one batch of 2B, source clouds first. source, target: the halves of `stacked` (views).
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
        pyramid: the geometry used, for another network on the same clouds; None from `ReferenceNetwork`, which shares
            nothing.
        bfe_neighbors: l -> (B, N_l, k) neighbors of each source point among the warped target points.
        encoder_source, encoder_target: l -> (B, N_l, C_l) encoder features of cloud 1, 2 after the expansion (512
            channels at level 3 of `baseline`); empty unless the network's `encoder_features` is set.
        backward_errors: l -> (B, N_l, 1) metres, how far each source point is from its start after the finest flow and
            the flow back; empty unless the teacher's `goes_back` is set.
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
    encoder_source: list[Tensor] = field(default_factory=list)
    encoder_target: list[Tensor] = field(default_factory=list)
    backward_errors: list[Tensor] = field(default_factory=list)

    def mapped(self, change: Callable[[int, Tensor], Tensor]) -> FlowPyramid:
        """Change flows and features: `change` is called with the level and a tensor (B, N_l, C)."""
        changed = {name: [change(*each) for each in enumerate(getattr(self, name))] for name in VALUE_FIELDS}
        return replace(self, **changed)  # type: ignore[arg-type]
