# SPDX-License-Identifier: MIT
"""From scenes to batches. Every random draw is a function of (seed, epoch, scene name) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from bpfn_cli.config import settings
from bpfn_cli.data.datasets import SceneDataset, sample_scene
from bpfn_cli.data.sampling import keyed_generator
from bpfn_cli.errors import BpfnError
from bpfn_cli.structures import FlowBatch, Scene

Range = Annotated[float, Field(ge=0, le=100)]


@settings
class AugmentSettings:
    """Random changes of a training sample, as in the published training.

    scale: per axis, 1 +- this. rotation_degrees: about the vertical axis, +- this. shift_m: of both clouds, per axis.
    shift2_m: of the second cloud alone, per axis. jitter_m: standard deviation of noise on each coordinate.
    """

    scale: Annotated[float, Field(ge=0, lt=1)] = 0.05
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    shift_m: Range = 1.0
    shift2_m: Range = 0.3
    jitter_m: Range = 0.0


Sample = tuple[np.ndarray, np.ndarray, np.ndarray]  # pc1, pc2, flow: (points, 3) float32


def augment(sample: Sample, options: AugmentSettings, generator: np.random.Generator) -> Sample:
    """Scale, turn and shift both clouds, shift the second once more; the flow follows.

    Source: released training of HPLFlowNet and PointPWC-Net.
    """
    pc1, pc2, flow = sample
    scale = generator.uniform(1 - options.scale, 1 + options.scale, 3)
    angle = np.deg2rad(generator.uniform(-options.rotation_degrees, options.rotation_degrees))
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    matrix = np.diag(scale) @ turn.T
    shift = generator.uniform(-options.shift_m, options.shift_m, 3)
    shift2 = generator.uniform(-options.shift2_m, options.shift2_m, 3)

    def moved(cloud: np.ndarray) -> np.ndarray:
        return cloud @ matrix + shift

    start, end, target = moved(pc1), moved(pc1 + flow) + shift2, moved(pc2) + shift2
    flow = end - start
    if options.jitter_m:
        start = start + generator.normal(0, options.jitter_m, start.shape)
        target = target + generator.normal(0, options.jitter_m, target.shape)
    return start.astype(np.float32), target.astype(np.float32), flow.astype(np.float32)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch takes `count` scenes."""
    return keyed_generator("order", seed, epoch).permutation(count).tolist()


def training_batches(
    dataset: SceneDataset,
    indices: Sequence[int],
    *,
    points: int,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: AugmentSettings | None,
    workers: int = 0,
    views: int | None = None,
) -> Iterator[FlowBatch]:
    """One epoch of shuffled, sampled, augmented batches of the scenes `indices`; the last may be short.

    The batches do not depend on `workers`.

    Args: views: after so many epochs each scene is drawn and augmented as it was before; None: never the same.
    """
    order = [indices[i] for i in epoch_order(len(indices), seed, epoch)]
    samples = _KeyedSamples(dataset, points, seed, epoch if views is None else epoch % views, augmentation)
    return _batches(samples, order, batch_size, workers)


def evaluation_batches(
    dataset: SceneDataset,
    indices: Sequence[int],
    *,
    points: int,
    batch_size: int,
    seed: int,
    workers: int = 0,
) -> Iterator[FlowBatch]:
    """Batches in order, sampled with `seed` and not augmented: the same at every call."""
    return _batches(_KeyedSamples(dataset, points, seed, None, None), list(indices), batch_size, workers)


class _KeyedSamples(torch.utils.data.Dataset):
    def __init__(
        self,
        dataset: SceneDataset,
        points: int,
        seed: int,
        epoch: int | None,
        augmentation: AugmentSettings | None,
    ):
        self.dataset, self.points, self.seed, self.epoch = dataset, points, seed, epoch
        self.augmentation = augmentation

    @property
    def view(self) -> str:
        """Names this draw of points and augmentation, beside what all draws of a training share."""
        return f"{self.seed}-{'evaluation' if self.epoch is None else self.epoch}"

    def __getitem__(self, index: int) -> Scene | BpfnError:
        """A sample, or the error that it met: raised in a worker it would arrive wrapped in a traceback."""
        name = self.dataset.names[index]
        generator = keyed_generator("sample", self.seed, "evaluation" if self.epoch is None else self.epoch, name)
        try:
            scene = sample_scene(self.dataset, index, self.points, generator)
        except BpfnError as error:
            return error
        if self.augmentation is None:
            return scene
        pc1, pc2, flow = augment((scene.pc1, scene.pc2, scene.flow), self.augmentation, generator)
        return replace(scene, pc1=pc1, pc2=pc2, flow=flow)


def _batches(samples: _KeyedSamples, order: list[int], batch_size: int, workers: int) -> Iterator[FlowBatch]:
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    loader = torch.utils.data.DataLoader(
        samples,
        batch_sampler=parts,
        collate_fn=_Collate(samples.view),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the default one would draw from the main generator
    )
    for batch in loader:
        if isinstance(batch, BpfnError):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Collate:
    """Samples of one view to a batch, or the first error among them."""

    view: str

    def __call__(self, items: list[Scene | BpfnError]) -> FlowBatch | BpfnError:
        failed = next((item for item in items if isinstance(item, BpfnError)), None)
        return failed or _stack([item for item in items if not isinstance(item, BpfnError)], self.view)


def _stack(scenes: list[Scene], view: str) -> FlowBatch:
    def together(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(parts))

    valid = None
    if any(scene.valid is not None for scene in scenes):
        valid = together([np.ones(len(s.pc1), bool) if s.valid is None else s.valid for s in scenes])
    return FlowBatch(
        together([scene.pc1 for scene in scenes]),
        together([scene.pc2 for scene in scenes]),
        together([scene.flow for scene in scenes]),
        tuple(scene.name for scene in scenes),
        tuple(scene.camera for scene in scenes),
        valid,
        view,
    )
