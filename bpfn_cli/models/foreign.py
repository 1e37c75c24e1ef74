# SPDX-License-Identifier: MIT
"""State dicts that other programs wrote with `torch.save`. Reading never runs code, and damage is found.

The weights may lie in nested mappings (`state_dict`, `model`, `ema`, ...), and their names may have prefixes: those of
DataParallel (`module.`), torch.compile (`_orig_mod.`) or a Lightning module (`model.`).
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfn_cli.errors import CheckpointError, printable
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.variants import VARIANTS

State = dict[str, Tensor]

# Components that wrappers put into names, at any place.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Where weights are looked for first; then in any other mapping, in the order of the file.
STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "params")
MAX_DEPTH = 4  # of nested mappings
# dict subclasses in which Lightning stores the settings of a module, read as plain dicts.
_LIGHTNING = ("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing")
_FABRIC = ("lightning_fabric.utilities.data", "lightning.fabric.utilities.data")
# What the standard library raises for damaged archives.
_ZIP_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    ArithmeticError,
    ValueError,
    OSError,
    RuntimeError,
)


class Network(NamedTuple):
    """Weights in a file. key: of the mapping that holds them. prefix: of the names. others: names outside of them."""

    key: str
    prefix: str
    state: State
    wrappers: frozenset[str]
    others: tuple[str, ...]

    @property
    def where(self) -> str:
        """Such as `ema.` or `state_dict: student.`."""
        return printable(": ".join(filter(None, (self.key, self.prefix)))) or "the top level"


def read_foreign(content: bytes, name: str) -> tuple[State, tuple[str, ...]]:
    """The weights of a file by the names of the network, and notes on where they were found.

    Raises: CheckpointError: damaged, unsafe, without weights of this network, or with those of several.
    """
    if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise CheckpointError(f"{name}: not read while TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set; unset it")
    notes = _check_archive(content, name)
    try:
        with torch.serialization.safe_globals(_harmless_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensor types that are rejected later
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name}: {_explain_refusal(error)}") from None
    except Exception:  # torch raises many kinds of exception for damaged files
        raise CheckpointError(f"{name}: damaged, or not a PyTorch checkpoint; download it again") from None
    candidates = list(_state_dicts(loaded))
    if not candidates:
        raise CheckpointError(f"{name}: no state dict (a mapping of names to tensors) found; save model.state_dict()")
    chosen, left = _choose([one for key, state in candidates for one in _networks(key, state)], name)
    if chosen is None:
        return candidates[0][1], notes  # the caller says which layers are missing
    return chosen.state, (*notes, *_notes(chosen, left))


def _check_archive(content: bytes, name: str) -> tuple[str, ...]:
    """Reject an archive that could expand, before anything is unpacked, and one whose checksums do not match."""
    if not content.startswith(b"PK"):
        return ("an old file without checksums, so damage may go unnoticed",)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CheckpointError(f"{name}: a compressed archive, which torch.save never writes; not opened")
            if sum(member.file_size for member in members) > len(content):
                raise CheckpointError(f"{name}: its members claim more bytes than the file has; not opened")
            if not any(member.CRC for member in members):  # torch.serialization.set_crc32_options(False)
                return ("written without checksums, so damage would go unnoticed",)
            damaged = archive.testzip()
    except _ZIP_FAULTS:
        raise CheckpointError(f"{name}: damaged archive; download it again") from None
    if damaged is not None:
        raise CheckpointError(f"{name}: damaged: {printable(damaged)} does not match its CRC-32; download it again")
    return ()


def _harmless_globals() -> list[Any]:
    """Classes that cannot run code and that training scripts store in checkpoints with the weights."""
    import argparse

    import numpy as np

    scalar = np.float64().__reduce__()[0]
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # before NumPy 2, and since
    attributes = [(dict, f"{module}.AttributeDict") for module in (*_LIGHTNING, *_FABRIC)]
    return [argparse.Namespace, np.dtype, *scalars, *attributes, *(type(np.dtype(kind)) for kind in "fdilqb?")]


def _explain_refusal(error: Exception) -> str:
    if found := re.search(r"(?:GLOBAL|global)\s+`?([\w.]+)", str(error)):
        return f"unsafe: it would run {printable(found[1])}, which weights do not need; save only model.state_dict()"
    return "unsafe or damaged: not a plain file of tensors; save only model.state_dict()"


def _state_dicts(loaded: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Every mapping of names to tensors in a file, with the keys that lead to it; the usual places come first."""
    if not isinstance(loaded, Mapping) or not loaded or depth > MAX_DEPTH:
        return
    if all(isinstance(value, Tensor) for value in loaded.values()):
        yield key, {str(name): value for name, value in loaded.items()}
        return
    usual = [name for name in STATE_KEYS if name in loaded]
    for name in (*usual, *(name for name in loaded if name not in usual)):
        yield from _state_dicts(loaded[name], f"{key}.{name}".lstrip("."), depth + 1)


def _networks(key: str, state: State) -> Iterator[Network]:
    """The networks in a state dict: names that end in those of this network, by what is before them."""
    known = _known_names()
    found: dict[str, State] = {}
    wrappers: dict[str, set[str]] = {}
    rest = {}
    for name, tensor in state.items():
        parts = name.split(".")
        plain = [part for part in parts if part not in WRAPPERS]
        start = next((index for index in range(len(plain)) if ".".join(plain[index:]) in known), None)
        if start is None:
            rest[name] = ".".join(plain)
            continue
        prefix = "".join(f"{part}." for part in plain[:start])
        found.setdefault(prefix, {})[".".join(plain[start:])] = tensor
        wrappers.setdefault(prefix, set()).update(part for part in parts if part in WRAPPERS)
    for prefix, own in found.items():
        # Unknown tensors inside the network make it another one; those outside do not matter.
        inside = {plain[len(prefix) :]: state[name] for name, plain in rest.items() if plain.startswith(prefix)}
        outside = tuple(name for name, plain in rest.items() if not plain.startswith(prefix))
        yield Network(key, prefix, {**own, **inside}, frozenset(wrappers[prefix]), outside)


@cache
def _known_names() -> frozenset[str]:
    """The names of the parameters and buffers of all variants."""
    with torch.device("meta"):
        return frozenset().union(*(BiPointFlowNet(variant).state_dict() for variant in VARIANTS.values()))


def _choose(networks: Sequence[Network], name: str) -> tuple[Network | None, list[Network]]:
    """The network of a file and those left out. Raises: CheckpointError: one state dict holds several.

    Among state dicts, such as those of the weights and of their moving average, the first counts.
    """
    largest = max((len(one.state) for one in networks), default=0)
    whole = [one for one in networks if 2 * len(one.state) > largest]
    same = [one for one in whole if one.key == whole[0].key]
    if len(same) > 1:
        places = " and ".join(one.prefix or "no prefix" for one in same[:5])
        raise CheckpointError(f"{name}: holds several networks ({printable(places)}); save only one of them")
    return (whole[0] if whole else None), whole[1:]


def _notes(chosen: Network, left: Sequence[Network]) -> Iterator[str]:
    """What a user must know about where the weights were found."""
    removed = [*([chosen.prefix] if chosen.prefix else []), *(f"{part}." for part in sorted(chosen.wrappers))]
    if removed:
        shown = " and ".join(f"`{printable(prefix)}`" for prefix in removed)
        yield f"the prefix{'es' * (len(removed) > 1)} {shown} {'were' if len(removed) > 1 else 'was'} removed"
    if left:
        yield f"the weights in {chosen.where} are used; others are in {', '.join(one.where for one in left[:5])}"
    if chosen.others:
        first = printable(chosen.others[0])
        yield f"{len(chosen.others)} other tensor{'s' * (len(chosen.others) > 1)} left out, first {first}"
