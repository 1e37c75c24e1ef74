# SPDX-License-Identifier: MIT
"""The checkpoints of a run: whole states of its training, from each of which it can go on."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bpfn_cli.errors import CheckpointError, DiskError, printable
from bpfn_cli.files import TEMPORARY_PREFIX, disk_errors, make_folder, remove_temporaries, write_atomic
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint

NEWEST_KEPT = 2  # should the newest turn out damaged
_NAME = re.compile(r"step-(\d{8,18})\.safetensors")
_TRAINING = "training"  # key of the metadata that holds what of a state is no tensor
LINKS = {"last": "last.safetensors", "best": "best.safetensors"}


@dataclass(frozen=True)
class Found:
    """A checkpoint that was read: how many batches its training had seen, its state, what was said of it."""

    number: int
    state: dict[str, Any]
    metadata: dict[str, Any]
    weights: Checkpoint


class Checkpoints:
    """`checkpoints/step-NUMBER.safetensors`; NUMBER counts the batches of the training, so the highest is the newest.

    Kept are the newest two, the best, and those that `is_kept` names. `last` and `best` are links, for people.
    Each is written whole: temporary file, fsync, rename, fsync of the folder.
    """

    def __init__(self, folder: Path, is_kept: Callable[[int], bool] = lambda number: False):
        self.folder, self.is_kept = folder, is_kept

    def path(self, number: int) -> Path:
        """The file of a checkpoint."""
        return self.folder / f"step-{number:08d}.safetensors"

    def numbers(self) -> list[int]:
        """Of those that are there, newest first, whatever the clock said when they were written."""
        if not self.folder.is_dir():
            return []
        with disk_errors(self.folder):
            found = [_NAME.fullmatch(entry.name) for entry in os.scandir(self.folder)]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def size_of_passing(self, best: int | None) -> int:
        """Bytes of the checkpoints that later ones will take the place of."""
        passing = {*self.numbers()[:NEWEST_KEPT], *(() if best is None else (best,))}
        return sum(self.path(number).stat().st_size for number in passing if self.path(number).is_file())

    def save(
        self,
        number: int,
        model: BiPointFlowNet,
        state: Mapping[str, Any],
        *,
        best: int | None = None,
        **metadata: Any,
    ) -> Path:
        """Write a checkpoint, then remove those that are kept no longer.

        Args:
            state: what the training needs to go on beside the weights: tensors and plain values, nested.
            best: number of the best one, perhaps this. metadata: what else is said of it.
        Raises: DiskError: it cannot be written; the ones before are still there.
        """
        tree, tensors = to_plain(state)
        path = self.path(number)
        write_atomic(path, checkpoint_bytes(model, {**metadata, _TRAINING: tree}, tensors))
        self._link("last", number)
        if best is not None:
            self._link("best", best)
        self._remove_old({number} | ({best} if best is not None else set()))
        return path

    def newest(self, say: Callable[[str], None]) -> Found | None:
        """The newest that is whole; None: there is none at all. Temporary files of killed writers are removed.

        Args: say: is told of damaged ones.
        Raises: CheckpointError: there are some, and all are damaged.
        """
        remove_temporaries(make_folder(self.folder))
        numbers = self.numbers()
        for index, number in enumerate(numbers):
            try:
                found = self.read(number)
            except CheckpointError as error:
                say(f"warning: {error}; trying the one before")
                continue
            for damaged in numbers[:index]:  # they would count as the newest
                with contextlib.suppress(OSError):
                    self.path(damaged).rename(self.path(damaged).with_suffix(".damaged"))
            return found
        if numbers:
            raise CheckpointError(
                f"{printable(self.folder)}: all {len(numbers)} checkpoints are damaged; restore one, or begin anew "
                "under another --name"
            )
        return None

    def read(self, number: int) -> Found:
        """One of them. Raises: CheckpointError: damaged, or of weights alone."""
        read = read_checkpoint(self.path(number))
        metadata = dict(read.metadata)
        tree = metadata.pop(_TRAINING, None)
        if tree is None:
            raise CheckpointError(f"{printable(self.path(number))}: holds weights alone, no state of a training")
        return Found(number, from_plain(tree, read.beside), metadata, read)

    def _link(self, which: str, number: int) -> None:
        """A convenience, so a file system without links is no error."""
        link, temporary = self.folder / LINKS[which], self.folder / f"{TEMPORARY_PREFIX}{which}"
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path(number).name)
            temporary.replace(link)

    def _remove_old(self, needed: set[int]) -> None:
        """What cannot be removed stays: never a reason to end a training."""
        with contextlib.suppress(OSError, DiskError):
            for number in self.numbers()[NEWEST_KEPT:]:
                if number not in needed and not self.is_kept(number):
                    self.path(number).unlink(missing_ok=True)


def to_plain(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as plain JSON, with its tensors apart, by name.

    Dicts and tuples are written out, since JSON knows neither keys that are numbers nor tuples.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone()
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"dict": [[key, plain(below, f"{name}/{key}")] for key, below in value.items()]}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [plain(below, f"{name}/{index}") for index, below in enumerate(value)]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{name}: a {type(value).__name__} cannot be part of a checkpoint")

    tree = plain(value, "")
    json.dumps(tree)
    return tree, tensors


def from_plain(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `to_plain`. Raises: CheckpointError: a tensor is missing, or this is no such tree."""
    try:
        return _nested(tree, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"no state of a training: {printable(error)}") from None


def _nested(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, below),) = tree.items()
    if kind == "tensor":
        return tensors[below]
    if kind == "dict":
        return {key: _nested(value, tensors) for key, value in below}
    items = (_nested(value, tensors) for value in below)
    return list(items) if kind == "list" else tuple(items)


def tensors_of(value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nested state, by name, in an order of their own."""
    yield from sorted(to_plain(value)[1].items())
