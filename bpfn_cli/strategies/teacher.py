# SPDX-License-Identifier: MIT
"""A teacher at work: without gradients, once a batch, on the student's points, from disk where it has been before."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from bpfn_cli.models import BiPointFlowNet, Variant
from bpfn_cli.ops import level_sizes, matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.rng import keyed_generator
from bpfn_cli.structures import LEVELS, FlowBatch, FlowPyramid

TOLERANCE = {Precision.float32: 1e-3, Precision.bf16: 5e-2, Precision.float16: 1e-2}
LONGEST_NAME = 200  # bytes of a file's name

Control = Callable[[FlowPyramid], FlowPyramid]


class Teacher:
    """A network in evaluation mode whose outputs guide a student.

    Attributes:
        forwards: how often the network was run. precision: of its large matrix products.
        control: what is done to its outputs before a student sees them (see `shuffle_points`); None: nothing.
        cache: outputs on disk; None: always computed.
    """

    def __init__(
        self,
        network: BiPointFlowNet,
        precision: Precision = Precision.float32,
        control: Control | None = None,
        cache: TeacherCache | None = None,
    ):
        self.network = network.eval().requires_grad_(False)
        self.precision, self.control, self.cache = precision, control, cache
        self.forwards = 0
        self._last: tuple[FlowBatch, FlowPyramid] | None = None

    def __call__(self, batch: FlowBatch, student: FlowPyramid | None = None) -> FlowPyramid:
        """The outputs on a batch, computed once for the same batch object.

        Args: student: an output on the same batch, whose point pyramid is used.
        """
        if self._last is None or self._last[0] is not batch:
            self._last = None  # free the memory first
            self._last = batch, self._outputs(batch, student)
        return self._last[1]

    def begin_epoch(self) -> None:
        """Let the cache verify a sample of the next batch."""
        if self.cache is not None:
            self.cache.is_verified = False

    def counts(self) -> list[int]:
        """How often it was run; how many samples the cache had, and had not."""
        cache = self.cache
        return [self.forwards, *((0, 0) if cache is None else (cache.found, cache.missed))]

    def set_counts(self, counts: list[int]) -> None:
        """Go on counting from there."""
        self.forwards = counts[0]
        if self.cache is not None:
            self.cache.found, self.cache.missed = counts[1:]

    def forget(self) -> None:
        """Let the next call compute, whatever the batch."""
        self._last = None

    def compute(self, batch: FlowBatch, student: FlowPyramid | None = None) -> FlowPyramid:
        """The network's own outputs, whatever is on disk; with gradients where they are enabled."""
        self.forwards += 1
        with matrix_precision(self.precision):
            return self.network(batch.pc1, batch.pc2, pyramid=None if student is None else student.pyramid)

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """In the block gradients reach the network's parameters; after it, its outputs are computed anew."""
        self.network.requires_grad_(True)
        try:
            yield
        finally:
            self.network.requires_grad_(False)
            self._last = None

    def _outputs(self, batch: FlowBatch, student: FlowPyramid | None) -> FlowPyramid:
        with torch.no_grad():
            if self.cache is None or student is None:
                found = self.compute(batch, student)
            else:
                found = self.cache.outputs(batch, student, self.compute)
            return found if self.control is None else self.control(found)


def shuffle_points(output: FlowPyramid) -> FlowPyramid:
    """The outputs of each level dealt to other points of it, the same way every time: a teacher that knows nothing of
    which point is which. A control: learning from it must not help."""

    def dealt(level: int, tensor: Tensor) -> Tensor:
        order = torch.from_numpy(keyed_generator("shuffle", level).permutation(tensor.shape[1]))
        return tensor[:, order.to(tensor.device)]

    return output.mapped(dealt)


@dataclass
class TeacherCache:
    """A teacher's outputs on disk, one file for each sample as it was drawn and augmented.

    A sample is named by its scene and the key of its draw (`FlowBatch.view`), so the same recipe with another loss, or
    the same views in a later epoch, finds it. Once an epoch one sample is computed again and compared.

    Attributes:
        folder: of this teacher on these data (see `cache_key`). reads: fields that are stored.
        tolerance: relative and absolute; rounding of another batch, not another teacher.
        found, missed: samples. full: why nothing more is written; empty while it is.
        is_verified: whether a sample has been compared since the epoch began.
    """

    folder: Path
    reads: frozenset[str]
    tolerance: float = TOLERANCE[Precision.float32]
    found: int = 0
    missed: int = 0
    full: str = ""
    is_verified: bool = False

    def outputs(
        self, batch: FlowBatch, student: FlowPyramid, compute: Callable[[FlowBatch, FlowPyramid | None], FlowPyramid]
    ) -> FlowPyramid:
        """The stored outputs of a batch; where one is missing or damaged, all are computed and stored.

        Raises: DataError: a stored output is not what the teacher gives.
        """
        if batch.view is None:
            return compute(batch, student)
        paths = [self.folder / batch.view / f"{_file_name(name)}.safetensors" for name in batch.names]
        stored = [self._load(path, student) for path in paths]
        if any(one is None for one in stored):
            self.missed += len(paths)
            output = compute(batch, student)
            self._store(paths, output)
            return output
        self.found += len(paths)
        whole = [one for one in stored if one is not None]
        if not self.is_verified:
            self.is_verified = True
            self._verify(batch, whole, paths, compute)
        together = {
            name: [torch.cat(level) for level in zip(*(one[name] for one in whole), strict=True)] for name in self.reads
        }
        return FlowPyramid(
            flows=together.get("flows", []),
            sample_indices1=student.sample_indices1,
            sample_indices2=student.sample_indices2,
            bfe_source=together.get("bfe_source", []),
            bfe_target=together.get("bfe_target", []),
            bfe_embedding=together.get("bfe_embedding", []),
            estimator_features=together.get("estimator_features", []),
            pyramid=student.pyramid,
            bfe_neighbors=together.get("bfe_neighbors", []),
        )

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

    def _load(self, path: Path, student: FlowPyramid) -> dict[str, list[Tensor]] | None:
        """The stored fields of a sample; None where there is no such file, or a damaged one, which is then replaced."""
        try:
            tensors = safetensors.torch.load(path.read_bytes())
            device = student.flows[0].device
            return {
                name: [tensors[f"{name}.{level}"].to(device) for level in range(len(student.flows))]
                for name in self.reads
            }
        except (OSError, KeyError, safetensors.SafetensorError):
            return None

    def _verify(
        self,
        batch: FlowBatch,
        stored: list[dict[str, list[Tensor]]],
        paths: list[Path],
        compute: Callable[[FlowBatch, FlowPyramid | None], FlowPyramid],
    ) -> None:
        chosen = int(keyed_generator("verify", batch.view or "", *batch.names).integers(len(paths)))
        one = replace(batch, pc1=batch.pc1[chosen : chosen + 1], pc2=batch.pc2[chosen : chosen + 1])
        truth = compute(one, None)
        for name, levels in stored[chosen].items():
            for level, tensor in enumerate(levels):
                true = getattr(truth, name)[level]
                apart = (tensor.double() - true.double()).abs()
                # Neighbors at equal distance, and a maximum that tips over, may differ by rounding: not all points.
                share = (apart > self.tolerance * true.double().abs().clamp_min(1)).double().mean()
                if tensor.shape != true.shape or share > 0.01:
                    raise DataError(
                        f"{printable(paths[chosen])}: {name} at level {level} is not what the teacher gives now; "
                        f"delete {printable(self.folder)}"
                    )


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step, without waiting for the disk: what is lost in a power cut is computed again."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    with disk_errors(path):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _file_name(scene: str) -> str:
    """A file name for a scene, whatever it is called."""
    quoted = quote(scene, safe="")
    return quoted if len(quoted) <= LONGEST_NAME else hashlib.sha256(scene.encode()).hexdigest()


def cache_key(teacher_sha256: str, data: dict[str, Any], reads: frozenset[str]) -> str:
    """Names what a teacher's stored outputs depend on beside scene and view.

    Args: data: identity of the scenes, points, seed, augmentation and precision, as plain values.
    """
    known = {"teacher": teacher_sha256, "data": data, "reads": sorted(reads), "bpfn": bpfn_cli.__version__}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def bytes_a_sample(variant: Variant, points: int, reads: frozenset[str]) -> int:
    """Bytes that `TeacherCache` stores for one sample of a teacher of `variant`, headers apart."""
    size = 0
    for level, rows in enumerate(level_sizes(points, variant.reductions)[:LEVELS]):
        width = variant.levels[level].embedding
        widths = {"flows": 3, "estimator_features": 64, "bfe_neighbors": 2 * variant.embedding_neighbors}
        size += sum(4 * rows * widths.get(name, width) for name in reads)
    return size
