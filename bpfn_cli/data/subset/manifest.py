# SPDX-License-Identifier: MIT
"""`subset.json`: which scenes a subset holds, how they were chosen, and the hash of every file.

The file may come from anywhere: names in it are checked before they become paths.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, PlainValidator, Strict, TypeAdapter, ValidationError, ValidationInfo

from bpfn_cli.choices import Link, SubsetMethod
from bpfn_cli.data.names import CLOUDS, SPLITS, check_scene_name
from bpfn_cli.data.records import differences, read_record
from bpfn_cli.errors import DataError, UsageError, printable

MANIFEST = "subset.json"
PACKED_ENDING = ".packed"
SourceKind = Literal["flyingthings3d", "synthetic", "synthetic_driving"]
SOURCE_KINDS = get_args(SourceKind)

_FORMAT = 1
_SMALLEST_FRACTION = 1e-6
_AGAIN = "make the subset again with --force"

Read = TypeVar("Read")

# Types of JSON values. `Strict`: no conversions, such as of "1" or True to 1.
Whole = Annotated[int, Strict()]
Count = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Strict()]
Distance = Annotated[float, Field(strict=True, ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class SubsetOptions:
    """Which share of the scenes to keep, and how. Raises: UsageError: a value out of range, or without effect."""

    fraction: Number = 0.2  # share of the training scenes, above 0 and at most 1
    # hash: the smallest sha256("seed:name"), identical everywhere and nested; stride: every k-th in sorted order,
    # k = 1/fraction rounded; stratified: training scenes with the flow lengths and depths of the whole, others as hash.
    method: SubsetMethod = "hash"
    seed: Whole = 0  # for hash and stratified
    offset: Whole = 0  # for stride, the first scene kept, below k
    # auto: hard link where the file system allows it, else copy. A hard-linked file is the source's file: editing one
    # edits both. A symlinked subset always needs its source.
    link: Link = "auto"
    val_fraction: Number | None = None  # share of the validation scenes; None: all
    packed: Annotated[bool, Strict()] = False  # one file per split (see `datasets.packed`), not a folder per scene
    max_points: Whole | None = None  # points kept of each packed scene; None: all within the depth cut
    leave_out: tuple[str, ...] = ()  # sorted "split/scene" names that are never chosen

    def __post_init__(self) -> None:
        for key, choices in (("method", SubsetMethod), ("link", Link)):
            if getattr(self, key) not in get_args(choices):
                raise UsageError(f"{key} {printable(getattr(self, key))}: use one of {', '.join(get_args(choices))}")
        most, by_stride = self.max_points, self.method == "stride"
        is_cut, is_linked = most is not None, self.link not in {"auto", "copy"}
        faults = {
            "max_points: only packed scenes are cut; add --packed, or leave it out": is_cut and not self.packed,
            f"max_points {most}: use 1 or more, such as 32768": most is not None and most < 1,
            f"link {self.link}: packed scenes are always copied; leave it out": self.packed and is_linked,
            "seed: method stride draws nothing; leave seed out, or use method hash": by_stride and self.seed,
            "offset: only for method stride; leave offset out, or use method stride": not by_stride and self.offset,
        }
        for message, is_fault in faults.items():
            if is_fault:
                raise UsageError(message)
        for key, fraction in (("fraction", self.fraction), ("val_fraction", self.val_fraction)):
            if fraction is not None:
                self._check_fraction(key, fraction)

    def _check_fraction(self, key: str, fraction: float) -> None:
        if not _SMALLEST_FRACTION <= fraction <= 1:  # false for NaN, too
            raise UsageError(f"{key} {fraction:g}: use a number from {_SMALLEST_FRACTION:g} to 1, such as 0.2")
        if self.method == "stride" and self.stride(fraction) == 1 and fraction < 1:
            raise UsageError(f"{key} {fraction:g}: stride would keep every scene; use method hash, or 1/2 or less")
        if self.method == "stride" and not 0 <= self.offset < self.stride(fraction):
            raise UsageError(f"offset {self.offset}: use 0 to {self.stride(fraction) - 1} for {key} {fraction:g}")

    def as_reported(self) -> SubsetOptions:
        """The fifth of the compression reports: every fifth scene of both splits, beginning with the first.

        They state how many scenes it has (4,504 and 451, so not of HPLFlowNet's lists), not which.
        Raises: UsageError: these options already choose a share.
        """
        if (self.fraction, self.method, self.offset, self.val_fraction) != (0.2, "hash", 0, None):
            raise UsageError("fifth: sets fraction, method, offset and val_fraction; leave these out")
        return replace(self, method="stride", val_fraction=self.fraction)

    @staticmethod
    def stride(fraction: float) -> int:
        """Distance between two kept scenes."""
        return round(1 / fraction)

    def share(self, split: str) -> float | None:
        """Share of the scenes of a split to keep; None: all, whatever the method."""
        return self.fraction if split == "train" else self.val_fraction

    def label(self, split: str = "train") -> str:
        """A description such as "1/5 subset, hash, seed 0"."""
        fraction = self.share(split) or 1.0
        whole = self.method == "stride" or math.isclose(1 / fraction, self.stride(fraction), rel_tol=1e-9)
        share = f"1/{self.stride(fraction)}" if whole else f"{fraction:g}"
        chosen = f"offset {self.offset}" if self.method == "stride" else f"seed {self.seed}"
        most = f", at most {self.max_points} points per scene" if self.max_points else ""
        return f"{share} subset, {self.method}, {chosen}{', packed' * self.packed}{most}"


def packed_name(split: str) -> str:
    """Name of the file that holds a packed split."""
    return f"{split}{PACKED_ENDING}"


@dataclass(frozen=True)
class FileRecord:
    """Size and hash of a file."""

    bytes: Count
    sha256: Sha256


def _scene_name(name: str, info: ValidationInfo) -> str:
    return check_scene_name(name, (info.context or {})["path"])


PackedFiles = dict[Annotated[str, Field(pattern=f"^({'|'.join(map(packed_name, SPLITS))})$")], FileRecord]
SceneName = Annotated[str, PlainValidator(_scene_name)]
SceneFiles = dict[str, dict[SceneName, dict[str, FileRecord]]]  # split -> scene -> cloud; packed scenes have none


@dataclass(frozen=True)
class SubsetTask:
    """What makes two runs the same work. source_sha256: hash of the names and sizes of all source files."""

    source: str  # path as given; not compared, because a folder may move
    source_kind: SourceKind
    source_sha256: Sha256
    options: SubsetOptions

    def differences(self, other: SubsetTask) -> list[str]:
        """How this task differs from `other`, in words; empty: the same work."""
        found = differences(asdict(self.options), asdict(other.options))
        if (self.source_kind, self.source_sha256) != (other.source_kind, other.source_sha256):
            found.append("another source, or one that changed")
        return found

    def document(self) -> dict[str, Any]:
        """The task as JSON values."""
        source = {key: getattr(self, key) for key in ("source_kind", "source", "source_sha256")}
        return {"format": _FORMAT, "kind": "subset", **source, **asdict(self.options)}


@dataclass(frozen=True)
class Extent:
    """Size of the whole source, or of the subset."""

    train_scenes: Count
    val_scenes: Count
    bytes: Count


@dataclass(frozen=True)
class Similarity:
    """How representative a subset is: Kolmogorov-Smirnov distances of the training scenes, 0 (the same) to 1."""

    flow_length: Distance
    depth: Distance
    source_scenes: Count  # how many were measured
    subset_scenes: Count
    points_per_scene: Count  # at most


@dataclass(frozen=True)
class SubsetManifest:
    """A finished subset. packed: file name -> record, where there is one file per split."""

    task: SubsetTask
    before: Extent
    after: Extent
    similarity: Annotated[Similarity, Field(validation_alias="kolmogorov_smirnov")]
    files: SceneFiles
    packed: Annotated[PackedFiles, Field(validation_alias="packed_files")] = field(default_factory=dict)

    def names(self) -> dict[str, tuple[str, ...]]:
        """Split -> sorted scene names."""
        return {split: tuple(sorted(scenes)) for split, scenes in self.files.items()}

    def document(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        values = asdict(self)
        sizes = {"before": values["before"], "after": values["after"], "kolmogorov_smirnov": values["similarity"]}
        packed = {"packed_files": values["packed"]} if self.packed else {}
        return {**self.task.document(), **sizes, "files": values["files"], **packed}


def read_manifest(path: Path) -> SubsetManifest:
    """Read `subset.json`. Raises: DataError: damaged, or a scene name that is none."""
    manifest = _read(path, TypeAdapter(SubsetManifest))
    counts = {split: len(scenes) for split, scenes in manifest.files.items()}
    if counts != {"train": manifest.after.train_scenes, "val": manifest.after.val_scenes}:
        raise DataError(f"{printable(path)}: after: does not match the scenes in files; {_AGAIN}")
    clouds = set() if manifest.task.options.packed else set(CLOUDS)
    for split, scenes in manifest.files.items():
        for name, files in scenes.items():
            if set(files) != clouds:
                raise DataError(f"{printable(path)}: files.{split}.{printable(name)[:80]}: wrong files; {_AGAIN}")
    return manifest


def read_task(path: Path) -> SubsetTask:
    """Read `subset.json.partial`. Raises: DataError: damaged."""
    return _read(path, TypeAdapter(SubsetTask))


def _read(path: Path, adapter: TypeAdapter[Read]) -> Read:
    document = read_record(path, _AGAIN)
    if document.get("format") != _FORMAT or document.get("kind") != "subset":
        raise DataError(f"{printable(path)}: not a subset of format {_FORMAT}; {_AGAIN}")
    if missing := {"fraction", "method", "seed", "offset", "link"} - document.keys():
        raise DataError(f"{printable(path)}: {min(missing)}: missing; {_AGAIN}")
    task = {**document, "options": document}  # on disk, all keys of the task lie at the top
    try:
        return adapter.validate_python({**task, "task": task}, context={"path": path})
    except UsageError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in {"task", "options", "[key]"})
        raise DataError(f"{printable(path)}: {printable(key)[:200]}: {first['msg']}; {_AGAIN}") from error
