# SPDX-License-Identifier: MIT
"""`subset.json`: which scenes a subset holds, how they were chosen, and the hash of every file.

The file may come from anywhere: names in it are checked before they become paths.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from bpfn_cli.data.files.npy import read_file
from bpfn_cli.data.names import CLOUDS, SPLITS, check_scene_name
from bpfn_cli.errors import DataError, UsageError, printable

MANIFEST = "subset.json"
UNFINISHED = "subset.json.partial"  # stands in the folder while a subset is being made
PACKED_ENDING = ".packed"
SOURCE_KINDS = ("flyingthings3d", "synthetic")

_FORMAT = 1
_SMALLEST_FRACTION = 1e-6
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SubsetOptions:
    """Which share of the scenes to keep, and how.

    Attributes:
        fraction: of the training scenes, above 0 and at most 1.
        method: hash: the smallest sha256("seed:name"), identical everywhere, nested;
            stride: every k-th in sorted order, k = 1/fraction rounded; stratified: training scenes with the flow
            lengths and depths of the whole, validation scenes as for hash.
        seed: for hash and stratified. offset: for stride, the first scene kept, below k.
        link: auto: hard link where the file system allows it, else copy. A hard-linked file is the
            source's file: editing one edits both. A symlinked subset needs its source for ever.
        val_fraction: of the validation scenes; None: all.
        packed: one file a split (see `packed`) in place of a folder a scene; link then has no effect.
        max_points: of a scene, for packed; None: all that are within the depth cut.
        leave_out: "split/scene" of scenes that are not to be chosen from, sorted.
    Raises: UsageError: a value that cannot be carried out, or would have no effect.
    """

    fraction: float = 0.2
    method: Literal["hash", "stride", "stratified"] = "hash"
    seed: int = 0
    offset: int = 0
    link: Literal["auto", "copy", "hard", "symlink"] = "auto"
    val_fraction: float | None = None
    packed: bool = False
    max_points: int | None = None
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_points is not None and not self.packed:
            raise UsageError("max_points: only packed scenes are cut; add --packed, or leave it out")
        if self.max_points is not None and self.max_points < 1:
            raise UsageError(f"max_points {self.max_points}: use 1 or more, such as 32768")
        if self.packed and self.link not in {"auto", "copy"}:
            raise UsageError(f"link {self.link}: packed scenes are always copied; leave it out")
        if self.method not in {"hash", "stride", "stratified"}:
            raise UsageError(f"method {printable(self.method)}: use hash, stride or stratified")
        if self.link not in {"auto", "copy", "hard", "symlink"}:
            raise UsageError(f"link {printable(self.link)}: use auto, copy, hard or symlink")
        if self.method == "stride" and self.seed:
            raise UsageError("seed: method stride draws nothing; leave seed out, or use method hash")
        if self.method != "stride" and self.offset:
            raise UsageError("offset: only method stride has one; leave offset out, or use method stride")
        for key, fraction in (("fraction", self.fraction), ("val_fraction", self.val_fraction)):
            if fraction is not None:
                self._check_fraction(key, fraction)

    def _check_fraction(self, key: str, fraction: float) -> None:
        if not _SMALLEST_FRACTION <= fraction <= 1:  # false for NaN, too
            raise UsageError(f"{key} {fraction:g}: use a number from {_SMALLEST_FRACTION:g} to 1, such as 0.2")
        if self.method != "stride":
            return
        if stride(fraction) == 1 and fraction < 1:
            raise UsageError(f"{key} {fraction:g}: stride would keep every scene; use method hash, or 1/2 or less")
        if not 0 <= self.offset < stride(fraction):
            raise UsageError(f"offset {self.offset}: use 0 to {stride(fraction) - 1} for {key} {fraction:g}")

    def label(self, split: str = "train") -> str:
        """For people, such as "1/5 subset, hash, seed 0"."""
        fraction = self.fraction if split == "train" else self.val_fraction or 1.0
        whole = self.method == "stride" or math.isclose(1 / fraction, stride(fraction), rel_tol=1e-9)
        share = f"1/{stride(fraction)}" if whole else f"{fraction:g}"
        chosen = f"offset {self.offset}" if self.method == "stride" else f"seed {self.seed}"
        most = f", at most {self.max_points} points a scene" if self.max_points else ""
        return f"{share} subset, {self.method}, {chosen}{', packed' * self.packed}{most}"


def stride(fraction: float) -> int:
    """Of every how many scenes one is kept."""
    return round(1 / fraction)


@dataclass(frozen=True)
class FileRecord:
    """What a file must be."""

    bytes: int
    sha256: str


SceneFiles = dict[str, dict[str, dict[str, FileRecord]]]  # split -> scene -> cloud -> record; packed: no clouds


@dataclass(frozen=True)
class SubsetTask:
    """What makes two runs the same work.

    Attributes:
        source: the folder as it was named; not compared, since a folder may move.
        source_kind: one of `SOURCE_KINDS`.
        source_sha256: of the names and sizes of all source files.
    """

    source: str
    source_kind: str
    source_sha256: str
    options: SubsetOptions

    def differences(self, other: SubsetTask) -> list[str]:
        """What was asked of `self` and not of `other`, in words; empty: the same work."""
        mine, theirs = asdict(self.options), asdict(other.options)
        found = [f"{key} {mine[key]}, not {theirs[key]}" for key in mine if mine[key] != theirs[key]]
        if (self.source_kind, self.source_sha256) != (other.source_kind, other.source_sha256):
            found.append("another or since changed source")
        return found

    def document(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "format": _FORMAT,
            "kind": "subset",
            "source_kind": self.source_kind,
            "source": self.source,
            "source_sha256": self.source_sha256,
            **asdict(self.options),
        }


@dataclass(frozen=True)
class Extent:
    """How much there is in the whole source, or in the subset."""

    train_scenes: int
    val_scenes: int
    bytes: int


@dataclass(frozen=True)
class Likeness:
    """How representative a subset is of its source: largest gaps of the distribution functions, 0 to 1.

    Attributes: flow_length, depth: Kolmogorov-Smirnov distances of training scenes;
        source_scenes, subset_scenes: how many were measured; points_per_scene: at most.
    """

    flow_length: float
    depth: float
    source_scenes: int
    subset_scenes: int
    points_per_scene: int


@dataclass(frozen=True)
class SubsetManifest:
    """A finished subset. packed: file name -> record, where there is one file a split."""

    task: SubsetTask
    before: Extent
    after: Extent
    likeness: Likeness
    files: SceneFiles
    packed: dict[str, FileRecord] = field(default_factory=dict)

    def names(self) -> dict[str, tuple[str, ...]]:
        """Split -> sorted scene names."""
        return {split: tuple(sorted(scenes)) for split, scenes in self.files.items()}

    def document(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            **self.task.document(),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "kolmogorov_smirnov": asdict(self.likeness),
            "files": {
                split: {
                    name: {cloud: asdict(record) for cloud, record in clouds.items()} for name, clouds in scenes.items()
                }
                for split, scenes in self.files.items()
            },
            **({"packed_files": {name: asdict(record) for name, record in self.packed.items()}} if self.packed else {}),
        }


def read_manifest(path: Path) -> SubsetManifest:
    """`subset.json`, checked throughout. Raises: DataError: damaged, or a name that is no scene name."""
    document = _read_json(path)
    task = _task(document, path)
    manifest = SubsetManifest(
        task=task,
        before=_extent(document, "before", path),
        after=_extent(document, "after", path),
        likeness=_likeness(document, path),
        files=_files(document, () if task.options.packed else CLOUDS, path),
        packed=_packed(document, path) if task.options.packed else {},
    )
    counts = {split: len(manifest.files[split]) for split in SPLITS}
    if counts != {"train": manifest.after.train_scenes, "val": manifest.after.val_scenes}:
        _refuse(path, "counts other scenes than it names")
    return manifest


def read_task(path: Path) -> SubsetTask:
    """`subset.json.partial`. Raises: DataError: damaged."""
    return _task(_read_json(path), path)


def _refuse(path: Path, what: str) -> NoReturn:
    raise DataError(f"{printable(path)}: {what}; make the subset again with --force")


def _read_json(path: Path) -> dict[str, Any]:
    content = bytes(read_file(path))
    try:
        document = json.loads(content.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{printable(path)}: not the JSON that was written there; make the subset again with --force"
        ) from error
    if not isinstance(document, dict):
        _refuse(path, "not a JSON object")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key stands twice")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _task(document: dict[str, Any], path: Path) -> SubsetTask:
    if document.get("format") != _FORMAT or document.get("kind") != "subset":
        _refuse(path, f"not a subset of format {_FORMAT}")
    if document.get("source_kind") not in SOURCE_KINDS:
        _refuse(path, f"source_kind is none of {', '.join(SOURCE_KINDS)}")
    val_fraction = document.get("val_fraction")
    try:
        options = SubsetOptions(
            fraction=_number(document, "fraction", path),
            method=_text(document, "method", path),  # type: ignore[arg-type]  # SubsetOptions checks it
            seed=_whole(document, "seed", path, signed=True),
            offset=_whole(document, "offset", path),
            link=_text(document, "link", path),  # type: ignore[arg-type]
            val_fraction=None if val_fraction is None else _number(document, "val_fraction", path),
            packed=document.get("packed", False) is True,
            max_points=None if document.get("max_points") is None else _whole(document, "max_points", path),
            leave_out=_texts(document, "leave_out", path),
        )
    except UsageError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    return SubsetTask(
        source=_text(document, "source", path),
        source_kind=document["source_kind"],
        source_sha256=_hash(document, "source_sha256", path),
        options=options,
    )


def _extent(document: dict[str, Any], key: str, path: Path) -> Extent:
    counts = _object(document, key, path)
    return Extent(*(_whole(counts, name, path) for name in ("train_scenes", "val_scenes", "bytes")))


def _likeness(document: dict[str, Any], path: Path) -> Likeness:
    measured = _object(document, "kolmogorov_smirnov", path)
    return Likeness(
        _number(measured, "flow_length", path),
        _number(measured, "depth", path),
        *(_whole(measured, name, path) for name in ("source_scenes", "subset_scenes", "points_per_scene")),
    )


def _files(document: dict[str, Any], clouds: Collection[str], path: Path) -> SceneFiles:
    splits = _object(document, "files", path, keys=SPLITS)
    return {split: _scenes(_object(splits, split, path), clouds, path) for split in SPLITS}


def _scenes(scenes: dict[str, Any], clouds: Collection[str], path: Path) -> dict[str, dict[str, FileRecord]]:
    return {
        check_scene_name(name, path): {
            cloud: _record(_object(_object(scenes, name, path, keys=clouds), cloud, path), path) for cloud in clouds
        }
        for name in scenes
    }


def _packed(document: dict[str, Any], path: Path) -> dict[str, FileRecord]:
    files = _object(document, "packed_files", path)
    if not set(files) <= {packed_name(split) for split in SPLITS}:
        _refuse(path, "packed_files names a file that is none of a subset")
    return {name: _record(_object(files, name, path), path) for name in files}


def packed_name(split: str) -> str:
    """The file that holds a packed split."""
    return f"{split}{PACKED_ENDING}"


def _record(record: dict[str, Any], path: Path) -> FileRecord:
    return FileRecord(_whole(record, "bytes", path), _hash(record, "sha256", path))


def _object(document: dict[str, Any], key: str, path: Path, keys: Collection[str] | None = None) -> dict[str, Any]:
    value = document.get(key)
    if not isinstance(value, dict) or (keys is not None and set(value) != set(keys)):
        _refuse(path, f"{printable(key)[:80]} is missing or not as it was written")
    return value


def _whole(document: dict[str, Any], key: str, path: Path, signed: bool = False) -> int:
    value = document.get(key)
    if type(value) is not int or (value < 0 and not signed):
        _refuse(path, f"{key} is missing or not a whole number")
    return value


def _number(document: dict[str, Any], key: str, path: Path) -> float:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1:
        _refuse(path, f"{key} is missing or not a number up to 1")
    return value


def _text(document: dict[str, Any], key: str, path: Path) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        _refuse(path, f"{key} is missing or not text")
    return value


def _texts(document: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    values = document.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        _refuse(path, f"{key} is not a list of text")
    return tuple(values)


def _hash(document: dict[str, Any], key: str, path: Path) -> str:
    value = _text(document, key, path)
    if not _SHA256.fullmatch(value):
        _refuse(path, f"{key} is not a sha256")
    return value
