# SPDX-License-Identifier: MIT
"""The checkpoints of a run: complete training states, from each of which it can be resumed."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bpfn_cli.errors import CheckpointError, DiskError, printable
from bpfn_cli.files import disk_errors, make_folder, remove_temporaries, replace_link, write_atomic
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.checkpoint import Checkpoint, checkpoint_bytes, read_checkpoint

NEWEST_KEPT = 2  # in case the newest turns out to be damaged
_NAME = re.compile(r"step-(\d{8,18})\.safetensors")
_TRAINING = "training"  # metadata key of the part of a state that is not tensors
LAST, BEST = "last.safetensors", "best.safetensors"  # links


@dataclass(frozen=True)
class Found:
    """A checkpoint as read: number of batches, training state, metadata and weights."""

    number: int
    state: dict[str, Any]
    metadata: dict[str, Any]
    weights: Checkpoint


class Checkpoints:
    """`checkpoints/step-NUMBER.safetensors`, each written atomically. NUMBER counts batches: the highest is the newest.

    The newest two, the best and those chosen by `is_kept` are kept. `last` and `best` are links for people.
    """

    def __init__(self, folder: Path, is_kept: Callable[[int], bool] = lambda number: False):
        self.folder, self.is_kept = folder, is_kept

    def path(self, number: int) -> Path:
        return self.folder / f"step-{number:08d}.safetensors"

    def numbers(self) -> list[int]:
        """Numbers of the existing checkpoints, newest first, whatever their time stamps say."""
        if not self.folder.is_dir():
            return []
        with disk_errors(self.folder):
            found = [_NAME.fullmatch(entry.name) for entry in os.scandir(self.folder)]
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def replaceable_bytes(self, best: int | None) -> int:
        """Bytes of the checkpoints that later ones will replace."""
        replaced = {*self.numbers()[:NEWEST_KEPT], *(() if best is None else (best,))}
        return sum(self.path(number).stat().st_size for number in replaced if self.path(number).is_file())

    def save(
        self, number: int, model: BiPointFlowNet, state: Mapping[str, Any], *, best: int | None = None, **metadata: Any
    ) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Args: state: tensors and plain values, nested. best: number of the best checkpoint, possibly this one.
        Raises: DiskError: it cannot be written; earlier checkpoints are untouched.
        """
        (tree, tensors), path = to_plain(state), self.path(number)
        write_atomic(path, checkpoint_bytes(model, {**metadata, _TRAINING: tree}, tensors))
        replace_link(self.folder / LAST, path.name)
        if best is not None:
            replace_link(self.folder / BEST, self.path(best).name)
        with contextlib.suppress(OSError, DiskError):  # files that cannot be removed are no reason to end a training
            for old in self.numbers()[NEWEST_KEPT:]:
                if old not in (number, best) and not self.is_kept(old):
                    self.path(old).unlink(missing_ok=True)
        return path

    def newest(self, say: Callable[[str], None]) -> Found | None:
        """Read the newest undamaged checkpoint, if any; warns of damaged ones. Raises: CheckpointError: all are."""
        remove_temporaries(make_folder(self.folder))
        numbers = self.numbers()
        for index, number in enumerate(numbers):
            try:
                found = self.read(number)
            except CheckpointError as error:
                say(f"warning: {error}; using the previous one")
                continue
            for damaged in numbers[:index]:  # would count as the newest
                with contextlib.suppress(OSError):
                    self.path(damaged).rename(self.path(damaged).with_suffix(".damaged"))
            return found
        if numbers:
            problem = f"all {len(numbers)} checkpoints are damaged"
            advice = "restore one, or start again under another --name"
            raise CheckpointError(f"{printable(self.folder)}: {problem}; {advice}")
        return None

    def read(self, number: int) -> Found:
        """Read one checkpoint. Raises: CheckpointError: damaged, or weights without a training state."""
        read = read_checkpoint(self.path(number))
        metadata = dict(read.metadata)
        if (tree := metadata.pop(_TRAINING, None)) is None:
            raise CheckpointError(f"{printable(self.path(number))}: holds only weights, not a training state")
        try:
            return Found(number, from_plain(tree, read.beside), metadata, read)
        except (KeyError, TypeError, ValueError) as error:
            where = printable(self.path(number))
            raise CheckpointError(f"{where}: not a training state: {printable(error)}") from None


def to_plain(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a nested state into JSON values (dicts and tuples tagged: JSON lacks integer keys) and named tensors."""
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
    """Undo `to_plain`. Raises: KeyError, TypeError, ValueError: a tensor is missing, or the tree is malformed."""
    if not isinstance(tree, dict):
        return tree
    ((kind, below),) = tree.items()
    if kind == "tensor":
        return tensors[below]
    if kind == "dict":
        return {key: from_plain(value, tensors) for key, value in below}
    items = (from_plain(value, tensors) for value in below)
    return list(items) if kind == "list" else tuple(items)
