# SPDX-License-Identifier: MIT
"""A teacher's outputs on disk."""

import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import bpfn_cli
from bpfn_cli.errors import DataError, DiskError, printable
from bpfn_cli.files import TEMPORARY_PREFIX, disk_errors, make_folder
from bpfn_cli.losses.term import ALL_FIELDS
from bpfn_cli.models.variants import Variant
from bpfn_cli.ops import level_sizes
from bpfn_cli.precision import Precision
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import BACKWARD_FIELD, LEVELS, FlowBatch, FlowPyramid

TOLERANCE = {Precision.float32: 1e-3, Precision.bf16: 5e-2, Precision.float16: 1e-2}
MAX_NAME_BYTES = 200
# Neighbors at equal distance and ties of a maximum may be resolved differently: this share of values may differ.
MAX_DIFFERING = 0.01

Compute = Callable[[FlowBatch, FlowPyramid | None], FlowPyramid]
Sample = dict[str, list[Tensor]]  # field of the output -> level -> (1, N_l, C)


@dataclass
class TeacherCache:
    """One file for each sample as it was drawn and augmented.

    A sample is identified by its scene and the key of its draw (`FlowBatch.view`), so the same recipe with another
    loss, or the same view in a later epoch, finds it. Once an epoch one sample is computed again and compared.

    Attributes:
        folder: of this teacher on this data (see `cache_key`). reads: the fields of the output that are stored.
        tolerance: relative and absolute; allows for rounding in another batch, not for another teacher.
        found, missed: number of samples. full: why nothing more is written; empty while it is.
        is_verified: whether a sample has been compared in this epoch.
    """

    folder: Path
    reads: frozenset[str]
    tolerance: float = TOLERANCE[Precision.float32]
    found: int = 0
    missed: int = 0
    full: str = ""
    is_verified: bool = False

    def outputs(self, batch: FlowBatch, student: FlowPyramid, compute: Compute) -> FlowPyramid:
        """The stored outputs of a batch; if one is missing or damaged, all are computed and stored.

        Raises: DataError: a stored output differs from the teacher's.
        """
        if batch.view is None:
            return compute(batch, student)
        paths = [self.folder / batch.view / f"{_file_name(name)}.safetensors" for name in batch.names]
        stored = [sample for path in paths if (sample := self._load(path, student)) is not None]
        if len(stored) < len(paths):
            self.missed += len(paths)
            output = compute(batch, student)
            self._store(paths, output)
            return output
        self.found += len(paths)
        if not self.is_verified:
            self.is_verified = True
            self._verify(batch, stored, paths, compute)
        fields: dict[str, Any] = {name: [] for name in ALL_FIELDS}
        for name in self.reads:
            fields[name] = [torch.cat(level) for level in zip(*(sample[name] for sample in stored), strict=True)]
        return replace(student, **fields)

    def _store(self, paths: list[Path], output: FlowPyramid) -> None:
        if self.full:
            return
        try:
            for index, path in enumerate(paths):
                tensors = {
                    f"{name}.{level}": tensor[index : index + 1].detach().cpu().contiguous()
                    for name in sorted(self.reads)
                    for level, tensor in enumerate(getattr(output, name))
                }
                make_folder(path.parent)
                _replace(path, safetensors.torch.save(tensors))
        except DiskError as error:
            self.full = str(error)

    def _load(self, path: Path, student: FlowPyramid) -> Sample | None:
        """The stored fields of a sample; None if the file is missing or damaged."""
        try:
            tensors = safetensors.torch.load(path.read_bytes())
            device, levels = student.flows[0].device, range(len(student.flows))
            return {name: [tensors[f"{name}.{level}"].to(device) for level in levels] for name in self.reads}
        except (OSError, KeyError, safetensors.SafetensorError):
            return None

    def _verify(self, batch: FlowBatch, stored: list[Sample], paths: list[Path], compute: Compute) -> None:
        chosen = int(keyed_generator("verify", batch.view or "", *batch.names).integers(len(paths)))
        one = replace(batch, pc1=batch.pc1[chosen : chosen + 1], pc2=batch.pc2[chosen : chosen + 1])
        computed = compute(one, None)
        for name, levels in stored[chosen].items():
            for level, tensor in enumerate(levels):
                expected = getattr(computed, name)[level].double()
                wrong = (tensor.double() - expected).abs() > self.tolerance * expected.abs().clamp_min(1)
                if tensor.shape != expected.shape or wrong.double().mean() > MAX_DIFFERING:
                    raise DataError(
                        f"{printable(paths[chosen])}: {name} at level {level} differs from the teacher's output; "
                        f"delete {printable(self.folder)}"
                    )


def _replace(path: Path, content: bytes) -> None:
    """Write a file atomically, without waiting for the disk: what a power cut loses is computed again."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    with disk_errors(path):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _file_name(scene: str) -> str:
    """A safe file name for any scene name."""
    quoted = quote(scene, safe="")
    return quoted if len(quoted) <= MAX_NAME_BYTES else hashlib.sha256(scene.encode()).hexdigest()


def cache_key(teacher_sha256: str, data: dict[str, Any], reads: frozenset[str]) -> str:
    """A name for everything that a teacher's stored outputs depend on beside scene and view.

    Args: data: identity of the scenes, points, seed, augmentation and precision, as plain values.
    """
    known = {"teacher": teacher_sha256, "data": data, "reads": sorted(reads), "bpfn": bpfn_cli.__version__}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def bytes_per_sample(variant: Variant, points: int, reads: frozenset[str]) -> int:
    """Bytes that `TeacherCache` stores for one sample of a teacher of `variant`, without headers."""
    size = 0
    for level, rows in enumerate(level_sizes(points, variant.reductions)[:LEVELS]):
        width, expanded = variant.levels[level].embedding, variant.levels[level].expanded
        widths = {
            "flows": 3,
            "estimator_features": variant.levels[level].estimator_features,
            "bfe_neighbors": 2 * variant.embedding_neighbors,
            "encoder_source": expanded,
            "encoder_target": expanded,
            BACKWARD_FIELD: 1,
        }
        size += sum(4 * rows * widths.get(name, width) for name in reads)
    return size
