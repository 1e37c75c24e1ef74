# SPDX-License-Identifier: MIT
"""Batches from scenes. Every random draw is a function of (seed, epoch, scene name)."""

import contextlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bpfn_cli.data.augment import AugmentSettings, augment, crop
from bpfn_cli.data.datasets import SceneDataset
from bpfn_cli.errors import BpfnError, DataError, DiskError, OutOfMemoryError, printable
from bpfn_cli.parallel import end_with_parent
from bpfn_cli.rng import keyed_generator
from bpfn_cli.stop import SIGNALS
from bpfn_cli.structures import FlowBatch, Scene

_OF_EVERY_SCENE = ("categories", "ego_motion")  # of a batch, if all its scenes have them


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of `count` scenes: their order in an epoch."""
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
        views: number of epochs after which draws and augmentations repeat; None: never. start: batches to skip.
        timeout: seconds after which a worker that reads a batch is given up; 0: never.
        part: (i, n): the i-th of n equal parts of each batch, from 0, if n processes share one.
    Raises: DataError, DiskError: a scene cannot be read, or a worker hangs. OutOfMemoryError: a worker was killed.
    """
    order = [indices[i] for i in epoch_order(len(indices), seed, epoch)][start * batch_size :]
    samples = _Samples(dataset, points, seed, epoch if views is None else epoch % views, augmentation)
    return _batches(samples, order, batch_size, workers, timeout, part)


def evaluation_batches(
    dataset: SceneDataset, indices: Sequence[int], *, points: int, batch_size: int, seed: int, workers: int = 0
) -> Iterator[FlowBatch]:
    """Batches in order, sampled with `seed` and not augmented: the same in every call."""
    return _batches(_Samples(dataset, points, seed, "evaluation", None), list(indices), batch_size, workers)


@dataclass(frozen=True)
class _Samples(torch.utils.data.Dataset):
    """Sampled and augmented scenes; `epoch` is part of the key of every draw."""

    dataset: SceneDataset
    points: int
    seed: int
    epoch: int | str
    augmentation: AugmentSettings | None

    def __getitem__(self, index: int) -> Scene | BpfnError:
        """A sample, or the error met while reading it: raised in a worker, it would arrive wrapped in a traceback."""
        generator = keyed_generator("sample", self.seed, self.epoch, self.dataset.names[index])
        largest = 1.0 if self.augmentation is None else self.augmentation.crop
        drawn = int(self.points * largest ** generator.uniform()) if largest > 1 else self.points
        try:
            scene = self.dataset.sample(index, drawn, generator, least=self.points)
        except BpfnError as error:
            return error
        if self.augmentation is None:
            return scene
        if len(scene.pc1) > self.points:
            scene = crop(scene, self.points, generator)
        known = np.zeros_like(scene.pc1) if scene.flow is None else scene.flow  # the same draws with and without labels
        pc1, pc2, flow = augment((scene.pc1, scene.pc2, known), self.augmentation, generator)
        return replace(scene, pc1=pc1, pc2=pc2, flow=None if scene.flow is None else flow, ego_motion=None)

    def collate(self, items: list[Scene | BpfnError]) -> FlowBatch | BpfnError:
        """The samples as a batch, or the first error among them."""
        scenes = [item for item in items if isinstance(item, Scene)]
        if len(scenes) < len(items):
            return next(item for item in items if isinstance(item, BpfnError))
        pc1, pc2 = (torch.from_numpy(np.stack([getattr(scene, name) for scene in scenes])) for name in ("pc1", "pc2"))
        flow = None
        if all(scene.flow is not None for scene in scenes):
            flow = torch.from_numpy(np.stack([scene.truth for scene in scenes]))
        valid = None
        if any(scene.valid is not None for scene in scenes):
            known = [np.ones(len(scene.pc1), bool) if scene.valid is None else scene.valid for scene in scenes]
            valid = torch.from_numpy(np.stack(known))
        names, cameras = tuple(scene.name for scene in scenes), tuple(scene.camera for scene in scenes)
        categories, ego_motion = (_stacked([getattr(one, name) for one in scenes]) for name in _OF_EVERY_SCENE)
        view = f"{self.seed}-{self.epoch}"
        return FlowBatch(pc1, pc2, flow, names, cameras, valid, view, categories=categories, ego_motion=ego_motion)


def _stacked(arrays: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    """The arrays in one tensor; None if one is missing."""
    known = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(known)) if len(known) == len(arrays) else None


def _batches(
    samples: _Samples, order: list[int], size: int, workers: int, timeout: float = 0, part: tuple[int, int] = (0, 1)
) -> Generator[FlowBatch, None, None]:
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    parts = [_part_of(batch, *part) for batch in batches]
    if workers:
        check_shared_memory()
    loader = torch.utils.data.DataLoader(
        samples,
        batch_sampler=[indices for _, indices in parts],
        collate_fn=samples.collate,
        num_workers=workers,
        # Forked workers start in milliseconds and use the dataset that is already open; they never touch a GPU.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        timeout=timeout if workers else 0,
        worker_init_fn=_init_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the default one would draw from the main generator
    )
    with _killing_workers_on_error():
        iterator = iter(loader)
        for batch, (first, indices) in zip(batches, parts, strict=True):
            with explained_workers([samples.dataset.names[index] for index in indices]):
                loaded = next(iterator)
            if isinstance(loaded, BpfnError):
                raise loaded
            yield loaded if part[1] == 1 else replace(loaded, first=first, whole=len(batch))


def _part_of(batch: list[int], index: int, count: int) -> tuple[int, list[int]]:
    """Position of the first sample of a part, and its samples; a stand-in if there are fewer samples than parts."""
    start, end = index * len(batch) // count, (index + 1) * len(batch) // count
    return (start, batch[start:end]) if end > start else (len(batch), batch[:1])


def check_shared_memory() -> None:
    """Raises: DiskError: loader processes could not pass on batches; they would only print a traceback, and hang."""
    try:
        multiprocessing.Lock()
        torch.empty(1).share_memory_()
    except (OSError, RuntimeError) as error:
        problem = f"loader processes need shared memory, such as /dev/shm, which fails: {printable(error)}"
        raise DiskError(f"{problem}; make it writable, or set data.workers=0") from error


@contextlib.contextmanager
def explained_workers(waited_for: Sequence[str] = ()) -> Iterator[None]:
    """Turn torch's errors about loader processes into errors that say what to do; `waited_for`: samples to load.

    The death of a worker is noticed at any point of the main process, so training runs inside such a block.

    Raises: OutOfMemoryError: a worker was killed. DataError: a worker hangs.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader timed out" in text:
            seconds = text.partition("after ")[2].partition(" ")[0]
            fault = f"a loader process hangs at one of the samples {printable(', '.join(waited_for))}"
            raise DataError(f"no data for {seconds} s: {fault}; check the disk, or increase data.timeout") from error
        if "DataLoader worker" in text:
            fault = "a loader process was killed, probably because memory ran out"
            raise OutOfMemoryError(f"{fault}; lower data.workers, then `bpfn resume`") from error
        raise


def _init_worker(worker: int) -> None:
    """In a worker: leave signals to the main process, which may still need batches, and end when it ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


@contextlib.contextmanager
def _killing_workers_on_error() -> Iterator[None]:
    """Kill processes started in the block if it is left early: they ignore other signals, and may hang in a read."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        workers = set(multiprocessing.active_children()) - before
        is_main = threading.current_thread() is threading.main_thread()
        # torch would report their end as an accident
        watching = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if workers and is_main else None
        for worker in workers:
            worker.kill()
            worker.join()
        if watching is not None:
            signal.signal(signal.SIGCHLD, watching)
        raise
