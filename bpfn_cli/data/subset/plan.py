# SPDX-License-Identifier: MIT
"""Plan a subset: choose its scenes, by hash, by stride or stratified, and measure how representative they are."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bpfn_cli.data.augment import even_rows
from bpfn_cli.data.contents import fingerprint
from bpfn_cli.data.datasets import FORMATS, find_dataset
from bpfn_cli.data.datasets.base import SceneDataset, SceneNames, in_one_line
from bpfn_cli.data.datasets.folders import file_sizes, list_scenes
from bpfn_cli.data.datasets.subset import Subset
from bpfn_cli.data.names import CLOUDS, SPLITS
from bpfn_cli.data.subset.manifest import SOURCE_KINDS, Extent, Similarity, SubsetManifest, SubsetOptions, SubsetTask
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import read_file
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import OnProgress
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import MAX_DEPTH_M, Scene

GOOD_DISTANCE = 0.005  # largest gap between the distribution functions at which a stratified choice is good enough
SAMPLED_SCENES = 100
SAMPLED_POINTS = 1000  # of a scene, evenly spaced rows
_SAMPLE_KEY = "likeness"  # another key would measure other scenes, and so change `subset.json`
_PROPOSALS_PER_SCENE = 100
_LEAST_PROPOSALS = 20_000
_FLOW_EDGES_M = np.concatenate([[0], np.geomspace(0.01, 20, 39), [np.inf]])
_DEPTH_EDGES_M = np.concatenate([np.linspace(0, MAX_DEPTH_M, 40), [np.inf]])


@dataclass(frozen=True)
class SubsetPlan:
    """What `make_subset` would do."""

    source: Path  # the folder that holds train/ and val/
    kind: str  # one of `SOURCE_KINDS`
    options: SubsetOptions
    available: SceneNames
    chosen: SceneNames
    sizes: dict[str, int]  # "split/scene/cloud" -> bytes, of all source files
    skipped: tuple[str, ...]  # entries of the source that are not scenes: stray files, links that are broken or loop

    @property
    def task(self) -> SubsetTask:
        """What must be equal for two runs to be the same work."""
        return SubsetTask(str(self.source), self.kind, fingerprint(self.sizes), self.options)  # type: ignore[arg-type]

    @property
    def before(self) -> Extent:
        """Size of the source."""
        return replace(self, chosen=self.available).after

    @property
    def after(self) -> Extent:
        """Size of the subset."""
        chosen = self.chosen
        size = sum(self.sizes[key] for key in self.files())
        return Extent(len(chosen.get("train", ())), len(chosen.get("val", ())), size)

    def files(self) -> list[str]:
        """Keys of the files of the subset, "split/scene/cloud"."""
        return [f"{split}/{name}/{cloud}" for split, name in scene_list(self.chosen) for cloud in CLOUDS]

    def dataset(self, split: str, names: Iterable[str]) -> SceneDataset:
        """Reader of scenes of the source."""
        return SceneDataset(FORMATS[self.kind], self.source, split, tuple(names))


def scene_list(names: SceneNames) -> list[tuple[str, str]]:
    """Split and name of every scene, training scenes first."""
    return [(split, name) for split in SPLITS for name in names.get(split, ())]


def plan_subset(
    source: Path,
    options: SubsetOptions,
    *,
    known: SubsetManifest | None = None,
    progress: OnProgress = None,
    processes: int | None = None,
) -> SubsetPlan:
    """Choose the scenes. Method stratified reads every training scene for that.

    Args:
        source: FlyingThings3D or synthetic scenes, or a subset of them, or the folder above them.
        known: a finished subset, whose stratified choice is reused if it has the same source and options.
    Raises:
        DataError: no such dataset, no training scenes, missing files, names that differ in case only. DiskError.
    """
    dataset = find_dataset(source, SOURCE_KINDS)
    root = dataset.root
    if isinstance(dataset, Subset) and dataset.manifest.packed:
        raise DataError(f"{printable(root)}: is packed, so it cannot be reduced further; give its source")
    available = _leave_out(dataset.scenes, options.leave_out, root)
    if not available.get("train"):
        raise DataError(f"{printable(root)}: no training scenes to choose from; check the path")
    if options.val_fraction is not None and not available.get("val"):
        raise DataError(f"{printable(root)}: no validation scenes to choose from; leave val_fraction out")
    for split, names in available.items():
        _refuse_colliding(names, root / split)
    chosen = {split: choose(names, options.share(split), options) for split, names in available.items()}
    if not chosen["train"]:
        beyond = f"offset {options.offset} is beyond its {len(available['train'])} training scenes"
        raise DataError(f"{printable(root)}: {beyond}; use a smaller one")
    skipped = tuple(f"{split}/{name}" for split in available for name in list_scenes(root / split)[1])
    sizes = file_sizes(root, available)
    plan = SubsetPlan(root, dataset.format.name, options, available, chosen, sizes, skipped)
    if options.method != "stratified":
        return plan
    same = known is not None and not plan.task.differences(known.task)
    train = known.names()["train"] if known and same else _stratified(plan, progress, processes)
    return replace(plan, chosen={**chosen, "train": train})


def _stratified(plan: SubsetPlan, progress: OnProgress, processes: int | None) -> tuple[str, ...]:
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


def choose(names: tuple[str, ...], fraction: float | None, options: SubsetOptions) -> tuple[str, ...]:
    """Choose by stride or hash, at least one scene by hash. fraction: None: all."""
    if fraction is None or not names:
        return names
    if options.method == "stride":
        return names[options.offset :: options.stride(fraction)]
    count = max(1, round(fraction * len(names)))
    return tuple(sorted(by_hash(names, options.seed)[:count]))


def by_hash(names: Sequence[str], key: int | str) -> list[str]:
    """Sort `names` by sha256("key:name"), the same on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{key}:{name}".encode()).digest())


def _lengths_and_depths(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Flow lengths and depths, metres, of sampled points."""
    rows = even_rows(len(scene.pc1), SAMPLED_POINTS)
    return np.sqrt((scene.truth[rows] ** 2).sum(axis=1)), scene.pc1[rows, 2]


def distributions(scene: Scene) -> np.ndarray:
    """(2, 40): the share of a scene's points below each edge of flow length and of depth."""
    pairs = zip(_lengths_and_depths(scene), (_FLOW_EDGES_M, _DEPTH_EDGES_M), strict=True)
    counts = np.array([np.histogram(values, edges)[0] for values, edges in pairs])
    return np.cumsum(counts, axis=1) / min(len(scene.pc1), SAMPLED_POINTS)


def choose_stratified(scenes: np.ndarray, first: Sequence[int], seed: int) -> list[int]:
    """Choose scenes whose distributions are within `GOOD_DISTANCE` of those of all scenes, if possible.

    Starting from `first`, scenes drawn at random are exchanged for others wherever that reduces the distance.

    Args: scenes: (N, 2, 40), `distributions` of each scene. first: indices of the initial choice.
    Returns: sorted indices, as many as `first`; they depend on the arguments only.
    """
    chosen = np.array(sorted(first))
    others = np.setdiff1d(np.arange(len(scenes)), chosen)
    target, total = scenes.mean(axis=0), scenes[chosen].sum(axis=0)
    distance = float(np.abs(total / len(chosen) - target).max())
    generator = keyed_generator("stratified", seed, len(scenes), len(chosen))
    for _ in range(max(_LEAST_PROPOSALS, _PROPOSALS_PER_SCENE * len(chosen)) if len(others) else 0):
        if distance <= GOOD_DISTANCE:
            break
        out, into = int(generator.integers(len(chosen))), int(generator.integers(len(others)))
        proposed = total - scenes[chosen[out]] + scenes[others[into]]
        gap = float(np.abs(proposed / len(chosen) - target).max())
        if gap < distance:
            distance, total = gap, proposed
            chosen[out], others[into] = others[into], chosen[out]
    return sorted(chosen.tolist())


def measure_similarity(subset: SceneDataset, source: SceneDataset) -> Similarity:
    """Compare samples of the training scenes, drawn by a hash that is unrelated to the choice."""
    (names, *values), (all_names, *all_values) = map(_sample, (subset, source))
    flow, depth = (round(ks_distance(*pair), 6) for pair in zip(values, all_values, strict=True))
    return Similarity(flow, depth, len(all_names), len(names), SAMPLED_POINTS)


def _sample(scenes: SceneDataset) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the sampled scenes, flow lengths and depths in metres."""
    names = by_hash(scenes.names, _SAMPLE_KEY)[:SAMPLED_SCENES]
    measured = [_lengths_and_depths(scenes.load(scenes.names.index(name))) for name in names]
    lengths, depths = (np.concatenate(values) for values in zip(*measured, strict=True))
    return names, lengths, depths


def ks_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest gap between their distribution functions, 0 to 1."""
    values = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def read_leave_out(path: Path) -> tuple[str, ...]:
    """Sorted "split/scene" lines of a list by `bpfn data check --fix-list`. Raises: DataError: no file, other lines."""
    lines = read_file(path).decode("utf-8", "replace").splitlines()
    names = sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})
    for name in names:
        if name.count("/") != 1 or name.split("/")[0] not in SPLITS:
            raise DataError(f"{printable(path)}: {printable(name)[:80]} is not of the form train/NAME or val/NAME")
    return tuple(names)


def _leave_out(available: SceneNames, names: Sequence[str], root: Path) -> dict[str, tuple[str, ...]]:
    """The available scenes (split -> names) without `names`. Raises: DataError: some are not available."""
    known = {f"{split}/{name}" for split in available for name in available[split]}
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"{printable(root)}: no scene {printable(in_one_line(unknown))} to leave out; check the list")
    dropped = set(names)
    return {
        split: tuple(name for name in scenes if f"{split}/{name}" not in dropped) for split, scenes in available.items()
    }


def _refuse_colliding(names: Sequence[str], folder: Path) -> None:
    """Raises: DataError: two names that macOS or Windows could not keep in one folder."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            same = f"{other} and {name} are the same name on some file systems"
            raise DataError(f"{printable(folder)}: {same}; rename one")
