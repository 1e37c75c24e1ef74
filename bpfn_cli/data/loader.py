# SPDX-License-Identifier: MIT
"""From scenes to batches. Every random draw is a function of (seed, epoch, scene name) alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from bpfn_cli.config import settings
from bpfn_cli.data.datasets import SceneDataset, sample_scene
from bpfn_cli.errors import BpfnError, DataError, OutOfMemoryError, printable
from bpfn_cli.parallel import end_with_parent
from bpfn_cli.rng import keyed_generator
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
    start: int = 0,
    timeout: float = 0,
    part: tuple[int, int] = (0, 1),
) -> Generator[FlowBatch, None, None]:
    """One epoch of shuffled, sampled, augmented batches of the scenes `indices`; the last may be short.

    The batches do not depend on `workers`.

    Args:
        views: after so many epochs each scene is drawn and augmented as it was before; None: never the same.
        start: the batches before this one are left out.
        timeout: seconds after which a worker that reads a batch is given up; 0: never.
        part: (i, n): the i-th of n equal parts of each batch, from 0, where n processes share one.
    Raises: DataError, DiskError: a scene cannot be read, or a worker hangs. OutOfMemoryError: a worker was killed.
    """
    order = [indices[i] for i in epoch_order(len(indices), seed, epoch)][start * batch_size :]
    samples = _KeyedSamples(dataset, points, seed, epoch if views is None else epoch % views, augmentation)
    return _batches(samples, order, batch_size, workers, timeout, part)


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


def _batches(
    samples: _KeyedSamples,
    order: list[int],
    batch_size: int,
    workers: int,
    timeout: float = 0,
    part: tuple[int, int] = (0, 1),
) -> Generator[FlowBatch, None, None]:
    wholes = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    firsts, parts = zip(*(_part_of(whole, *part) for whole in wholes), strict=True) if wholes else ((), ())
    loader = torch.utils.data.DataLoader(
        samples,
        batch_sampler=list(parts),
        collate_fn=_Collate(samples.view),
        num_workers=workers,
        # Forked ones start in milliseconds, and read the dataset that is open here; they never touch a GPU.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        timeout=timeout if workers else 0,
        worker_init_fn=_follow_main_process if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the default one would draw from the main generator
    )
    with _ending_workers():
        iterator = iter(loader)
        for whole, first, own in zip(wholes, firsts, parts, strict=True):
            with explained_workers([samples.dataset.names[index] for index in own]):
                batch = next(iterator)
            if isinstance(batch, BpfnError):
                raise batch
            yield batch if part[1] == 1 else replace(batch, first=first, whole=len(whole))


def _part_of(whole: list[int], index: int, count: int) -> tuple[int, list[int]]:
    """A part of a batch and the place of its first sample; where there are fewer samples than parts, a stand-in."""
    start, end = index * len(whole) // count, (index + 1) * len(whole) // count
    return (start, whole[start:end]) if end > start else (len(whole), whole[:1])


@contextlib.contextmanager
def explained_workers(waited_for: Sequence[str] = ()) -> Iterator[None]:
    """Turn what torch says of loading processes into what a user can do about it.

    A worker's death is noticed wherever the main process happens to be, so a training works in such a block.

    Args: waited_for: names of the samples that are being loaded.
    Raises: OutOfMemoryError: a worker was killed. DataError: one hangs.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader timed out" in text:
            seconds = text.partition("after ")[2].partition(" ")[0]
            names = printable(", ".join(waited_for))
            raise DataError(
                f"no data for {seconds} s: a loading process hangs at one of the samples {names}; check the disk, or "
                "raise data.timeout"
            ) from error
        if "DataLoader worker" in text:
            raise OutOfMemoryError(
                "a loading process was killed, for want of memory perhaps; lower data.workers, then `bpfn resume`"
            ) from error
        raise


def _follow_main_process(worker: int) -> None:
    """In a worker: leave signals to the main process, which may still need batches, and end when it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


@contextlib.contextmanager
def _ending_workers() -> Iterator[None]:
    """End the processes that are started in the block where it is left before they are done: they ignore what else
    would end them, and one that hangs in a read would hold up everybody."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        workers = set(multiprocessing.active_children()) - before
        is_main = threading.current_thread() is threading.main_thread()
        # torch would take their end for an accident.
        watching = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if workers and is_main else None
        for worker in workers:
            worker.kill()
            worker.join()
        if watching is not None:
            signal.signal(signal.SIGCHLD, watching)
        raise


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
