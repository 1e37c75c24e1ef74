# SPDX-License-Identifier: MIT
"""Plan a subset: read what the source holds, choose scenes, write nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bpfn_cli.data.datasets import FORMATS, find_dataset
from bpfn_cli.data.datasets.base import SceneDataset, SceneNames, fingerprint, in_one_line
from bpfn_cli.data.datasets.folders import file_sizes, list_scenes
from bpfn_cli.data.datasets.subset import Subset
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.subset.manifest import SOURCE_KINDS, Extent, SubsetManifest, SubsetOptions, SubsetTask
from bpfn_cli.data.subset.select import choose, choose_stratified, distributions, leave_out, refuse_colliding
from bpfn_cli.errors import DataError, printable
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import ProgressCallback


@dataclass(frozen=True)
class SubsetPlan:
    """What `make_subset` would do.

    Attributes:
        source: the folder that holds train/ and val/. kind: one of `SOURCE_KINDS`.
        available, chosen: scenes of the source and of the subset.
        sizes: "split/scene/cloud" -> bytes, of all source files.
        skipped: entries of the source that are not scenes: stray files, links that are broken or loop.
    """

    source: Path
    kind: str
    options: SubsetOptions
    available: SceneNames
    chosen: SceneNames
    sizes: dict[str, int]
    skipped: tuple[str, ...]

    @property
    def task(self) -> SubsetTask:
        """What must be equal for two runs to be the same work."""
        return SubsetTask(str(self.source), self.kind, fingerprint(self.sizes), self.options)  # type: ignore[arg-type]

    @property
    def before(self) -> Extent:
        """Size of the source."""
        return self._extent(self.available)

    @property
    def after(self) -> Extent:
        """Size of the subset."""
        return self._extent(self.chosen)

    def files(self) -> list[str]:
        """Keys of the files of the subset, "split/scene/cloud"."""
        return list(_files(self.chosen))

    def dataset(self, split: str, names: Iterable[str]) -> SceneDataset:
        """Reader of scenes of the source."""
        return SceneDataset(FORMATS[self.kind], self.source, split, tuple(names))

    def _extent(self, scenes: SceneNames) -> Extent:
        total = sum(self.sizes[key] for key in _files(scenes))
        return Extent(len(scenes.get("train", ())), len(scenes.get("val", ())), total)


def scene_list(names: SceneNames) -> list[tuple[str, str]]:
    """Split and name of every scene, training scenes first."""
    return [(split, name) for split in SPLITS for name in names.get(split, ())]


def plan_subset(
    source: Path,
    options: SubsetOptions,
    *,
    known: SubsetManifest | None = None,
    progress: ProgressCallback | None = None,
    processes: int | None = None,
) -> SubsetPlan:
    """Choose the scenes. Method stratified reads every training scene for that.

    Args:
        source: FlyingThings3D or synthetic scenes, or a subset of them, or the folder above them.
        known: a finished subset, whose stratified choice is reused if it has the same source and options.
    Raises:
        DataError: no such dataset, no training scenes, missing files, names that differ in case only.
        DiskError: not permitted.
    """
    dataset = find_dataset(source, SOURCE_KINDS)
    if isinstance(dataset, Subset) and dataset.manifest.packed:
        raise DataError(f"{printable(dataset.root)}: is packed, so it cannot be reduced further; give its source")
    available = leave_out(dataset.scenes, options.leave_out, dataset.root)
    _check_available(available, options, dataset.root)
    chosen = {split: choose(available[split], options.share(split), options) for split in available}
    if not chosen["train"]:
        raise DataError(
            f"{printable(dataset.root)}: offset {options.offset} is beyond its {len(available['train'])} "
            "training scenes; use a smaller one"
        )
    skipped = tuple(f"{split}/{name}" for split in available for name in list_scenes(dataset.root / split)[1])
    sizes = file_sizes(dataset.root, available)
    plan = SubsetPlan(dataset.root, dataset.format.name, options, available, chosen, sizes, skipped)
    if options.method != "stratified":
        return plan
    same = known is not None and not plan.task.differences(known.task)
    train = known.names()["train"] if known and same else _stratified(plan, progress, processes)
    return replace(plan, chosen={**chosen, "train": train})


def _check_available(available: SceneNames, options: SubsetOptions, root: Path) -> None:
    if not available.get("train"):
        raise DataError(f"{printable(root)}: no training scenes to choose from; check the path")
    if options.val_fraction is not None and not available.get("val"):
        raise DataError(f"{printable(root)}: no validation scenes to choose from; leave val_fraction out")
    for split, names in available.items():
        refuse_colliding(names, root / split)


def _stratified(plan: SubsetPlan, progress: ProgressCallback | None, processes: int | None) -> tuple[str, ...]:
    """Training scenes with the flow lengths and depths of the whole. Raises: DataError: lists all damaged scenes."""
    names = plan.available["train"]
    dataset = plan.dataset("train", names)

    def measure(index: int) -> np.ndarray | str:
        try:
            return distributions(dataset.load(index))
        except DataError as error:
            return str(error)

    found = list(map_in_threads(measure, range(len(names)), processes, progress))
    refuse_damaged([one for one in found if isinstance(one, str)], len(names))
    first = [names.index(name) for name in plan.chosen["train"]]
    chosen = choose_stratified(np.stack(found), first, plan.options.seed)
    return tuple(names[index] for index in chosen)


def refuse_damaged(faults: list[str], scenes: int) -> None:
    """Raises: DataError: there are faults."""
    if faults:
        raise DataError(f"{len(faults)} of {scenes} scenes are damaged: {in_one_line(faults)}")


def _files(scenes: SceneNames) -> Iterator[str]:
    return (f"{split}/{name}/{cloud}" for split, name in scene_list(scenes) for cloud in CLOUDS)
