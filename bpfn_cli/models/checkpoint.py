# SPDX-License-Identifier: MIT
"""Weights on disk: our own safetensors files, and published-style `.pth` state dicts. Reading never runs code."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

import bpfn_cli
from bpfn_cli.choices import PUBLISHED_POINTS, Storage
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.files import write_atomic
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.build import default_network
from bpfn_cli.models.foreign import read_foreign
from bpfn_cli.models.storage import decode, encode
from bpfn_cli.models.variants import CUSTOM, VARIANTS, Level, Separable, Variant, file_name, infer_variant
from bpfn_cli.structures import LEVELS

FORMAT = 1
SUFFIX, PUBLISHED_SUFFIX = ".safetensors", ".pth"
SIZES_SUFFIXES = (".yaml", ".yml")
RUNTIME_SUFFIXES = (".onnx", ".pt2")  # of exported networks, which runtimes execute
LARGEST_FILE = 4 << 30  # bytes; our largest network takes 32 MB, a training checkpoint 100 MB
_NUMBERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8)
_METADATA_KEY = "bpfn"
_NOT_OURS = "{name}: damaged, or not a bpfn checkpoint; restore or write it again"
_BESIDE = "+"  # prefix of the names of tensors that do not belong to the network


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        variant: sizes of the network. num_points: points per cloud it was trained with.
        state: name -> tensor, names without prefixes. metadata: written by `save_checkpoint`; empty for foreign files.
        notes: remarks for the user on how it was read.
        beside: other tensors for resuming a training (optimizer, adapters, ...), by name; empty in deployed files.
    """

    variant: Variant
    num_points: int
    state: dict[str, Tensor]
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()
    beside: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(path: str | Path, model: BiPointFlowNet, storage: Storage = "float32", **metadata: Any) -> None:
    """Write weights, variant and `metadata` (JSON-able) to one safetensors file, atomically.

    Args: storage: of the weights in the file; see `storage.encode`.
    Raises: DiskError: it cannot be written; an existing file at `path` is unchanged.
    """
    write_atomic(Path(path), checkpoint_bytes(model, metadata, storage=storage))


def save_published(path: str | Path, model: BiPointFlowNet) -> None:
    """Write the weights to a `.pth` state dict with the names of the published network, atomically.

    It holds only weights: sizes are read from their shapes.
    Raises: UsageError: they do not follow from the shapes. DiskError: as `save_checkpoint`.
    """
    write_atomic(Path(path), published_bytes(model, printable(path)))


def published_bytes(model: BiPointFlowNet, name: str) -> bytes:
    """The bytes of the file that `save_published` writes. Args: name: of the file, for errors. Raises: UsageError."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if not follows_from_shapes(model):
        lost = "numbers of neighbors, reductions and some bottlenecks do not follow from the shapes of a state dict"
        raise UsageError(f"{name}: {lost}; use the suffix {SUFFIX}")
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def follows_from_shapes(model: BiPointFlowNet) -> bool:
    """Whether the shapes of its tensors tell the sizes of a network, as a published file needs."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return replace(infer_variant(shapes, ""), name=model.variant.name) == model.variant


def checkpoint_bytes(
    model: BiPointFlowNet,
    metadata: Mapping[str, Any],
    beside: Mapping[str, Tensor] | None = None,
    storage: Storage = "float32",
) -> bytes:
    """The bytes of a checkpoint file; equal for equal weights and metadata.

    Args: beside: tensors that do not belong to the network, by name; see `Checkpoint.beside`.
    """
    others = {f"{_BESIDE}{name}": tensor for name, tensor in (beside or {}).items()}
    tensors = {**encode(model.state_dict(), storage), **others}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = header_text(model, metadata)
    # A single key: safetensors writes several in random order.
    sealed = json.dumps({"about": text, "sha256": _digest(state, text)}, sort_keys=True)
    return safetensors.torch.save(state, {_METADATA_KEY: sealed})


def header_text(model: BiPointFlowNet, metadata: Mapping[str, Any]) -> str:
    """What our files say about a network, as JSON; `parse_header` reads it."""
    header = {
        "format": FORMAT,
        "bpfn": bpfn_cli.__version__,
        "torch": torch.__version__,
        "variant": _plain_sizes(model.variant),
        "num_points": model.num_points,
        "metadata": dict(metadata),
    }
    return json.dumps(header, sort_keys=True)


def _plain_sizes(variant: Variant) -> dict[str, Any]:
    """As earlier versions of bpfn read them, where they can."""
    sizes = {**asdict(variant), "separable": variant.separable.plain()}
    if not variant.residual:
        del sizes["residual"]
    for level in sizes["levels"]:
        for name in ("estimator", "estimator_features"):
            if level[name] == getattr(Level, name):
                del level[name]
    return sizes


def load_checkpoint(path: str | Path) -> BiPointFlowNet:
    """Build the network of a checkpoint file, in evaluation mode; its variant follows from the file.

    A published-style `.pth` or `.ckpt` file may have prefixes before its names, and nested mappings; see `foreign`.
    Raises: CheckpointError: missing, damaged, unsafe, of another architecture, or with NaN weights.
    """
    return build_from(read_checkpoint(path))


def build_from(checkpoint: Checkpoint) -> BiPointFlowNet:
    """Build the network of a checkpoint that was read, in evaluation mode."""
    model = default_network()(checkpoint.variant, checkpoint.num_points)
    model.load_state_dict(checkpoint.state)
    return model.eval()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and check a checkpoint file without building the network. Raises: see `load_checkpoint`."""
    path = Path(path)
    return parse_checkpoint(read_weights_file(path), path)


def parse_checkpoint(content: bytes, path: Path) -> Checkpoint:
    """The checkpoint whose file `path` has this content. Raises: as `load_checkpoint`."""
    name = printable(path)
    if path.suffix == SUFFIX:
        tensors, header = _read_own(content, name)
        state = {key: tensor for key, tensor in tensors.items() if not key.startswith(_BESIDE)}
        beside = {key[len(_BESIDE) :]: tensor for key, tensor in tensors.items() if key.startswith(_BESIDE)}
        _check_tensors(state, name)
        state = decode(state, name)
        variant = _named(header.variant.variant(), path)
        checkpoint = Checkpoint(variant, header.num_points, state, header.metadata, beside=beside)
    else:
        if path.suffix in SIZES_SUFFIXES:
            raise CheckpointError(f"{name}: a file of sizes, not of weights; give it to --variant")
        if path.suffix in RUNTIME_SUFFIXES:
            raise CheckpointError(f"{name}: an exported network; give the checkpoint that it was exported from")
        state, notes = read_foreign(content, name)
        _check_tensors(state, name)
        variant = infer_variant({key: tuple(tensor.shape) for key, tensor in state.items()}, name)
        checkpoint = Checkpoint(_named(variant, path), PUBLISHED_POINTS, state, {}, notes)
    _check_names(checkpoint, name)
    _check_finite(checkpoint.state, name)
    return checkpoint


def _named(variant: Variant, path: Path) -> Variant:
    """Name sizes that have no name after their file."""
    name = file_name(path)
    return replace(variant, name=name) if variant.name == CUSTOM and name not in VARIANTS else variant


def read_weights_file(path: Path) -> bytes:
    """The bytes of a file of weights. Raises: CheckpointError: missing, too large, or evidently something else."""
    name = printable(path)
    try:
        if path.is_dir():
            raise CheckpointError(f"{name}: is a folder; name the checkpoint file inside it")
        if not path.is_file():
            raise CheckpointError(f"{name}: no such checkpoint file; `bpfn train` or `bpfn slim` writes one")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise CheckpointError(f"{name}: {size / 2**30:.1f} GiB is too large for a checkpoint of this network")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{name}: {error.strerror}; check its path and permissions") from None
    if not content:
        raise CheckpointError(f"{name}: empty file; download or write it again")
    if content[:64].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{name}: a web page, not a checkpoint; download the file itself")
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        raise CheckpointError(f"{name}: a Git LFS pointer, not the weights; run `git lfs pull` where it was cloned")
    return content


def _read_own(content: bytes, name: str) -> tuple[dict[str, Tensor], Header]:
    try:
        state = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        sealed = json.loads(header["__metadata__"][_METADATA_KEY])
        fields = json.loads(sealed["about"])
        if sealed["sha256"] != _digest(state, sealed["about"]):
            raise CheckpointError(f"{name}: damaged: its content does not match its sha256; restore it")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(_NOT_OURS.format(name=name)) from None
    return state, parse_header(fields, name)


def parse_header(fields: Any, name: str) -> Header:
    """Check what `header_text` wrote. Raises: CheckpointError: of another format, or not valid."""
    if not isinstance(fields, dict) or "format" not in fields:
        raise CheckpointError(_NOT_OURS.format(name=name))
    if (written := fields["format"]) != FORMAT:
        raise CheckpointError(f"{name}: format {printable(written)}, but this bpfn reads {FORMAT}; update bpfn")
    try:
        return Header.model_validate(fields, strict=True)
    except ValidationError as error:
        key = printable(".".join(map(str, error.errors()[0]["loc"])))
        raise CheckpointError(f"{name}: its header has no valid {key}; this bpfn did not write it") from None


Width = Annotated[int, Field(ge=0, le=1 << 14)]
ActualWidth = Annotated[int, Field(ge=1, le=1 << 14)]
Few = Annotated[int, Field(ge=1, le=64)]
Name = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _LevelHeader(_Strict):
    reduction: Few
    width: ActualWidth
    expanded: Width
    context: Width
    embedding: Width
    c_mid: Few
    estimator: ActualWidth = Level.estimator
    estimator_features: ActualWidth = Level.estimator_features


class _SeparableHeader(_Strict):
    encoder: list[Annotated[int, Field(ge=1, le=LEVELS)]]
    estimators: list[Annotated[int, Field(ge=0, lt=LEVELS)]]


class _VariantHeader(_Strict):
    name: Name
    levels: Annotated[list[_LevelHeader], Field(min_length=LEVELS + 1, max_length=LEVELS + 1)]
    bn: bool
    separable: bool | _SeparableHeader
    bottleneck: Annotated[int, Field(ge=0, le=16)]
    residual: Annotated[list[ActualWidth], Field(min_length=LEVELS, max_length=LEVELS)] = []
    encoder_neighbors: Few
    embedding_neighbors: Few
    estimator_neighbors: Few

    def variant(self) -> Variant:
        fields = self.model_dump()
        levels = tuple(Level(**level) for level in fields.pop("levels"))
        separable, residual = Separable.read(fields.pop("separable")), tuple(fields.pop("residual"))
        return Variant(levels=levels, separable=separable, residual=residual, **fields)  # type: ignore[arg-type]


class Header(_Strict):
    """The header of our own files. It is checked in full, since anyone may have written the file."""

    format: int
    bpfn: str
    torch: str
    variant: _VariantHeader
    num_points: Annotated[int, Field(ge=1, le=10**6)]
    metadata: dict[str, Any]


def _digest(state: Mapping[str, Tensor], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for key in sorted(state):
        tensor = state[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_tensors(state: Mapping[str, Tensor], name: str) -> None:
    """Reject tensors whose values are not all in the file, before any value is read."""
    for key, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in _NUMBERS
        if tensor.is_nested or not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{name}: {printable(key)} is not an ordinary tensor; save model.state_dict()")


def _check_names(checkpoint: Checkpoint, name: str) -> None:
    expected, state = _shapes_of(checkpoint.variant), checkpoint.state
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        counts = f"{len(missing)} names missing and {len(unexpected)} unexpected"
        first = printable((missing or unexpected)[0])
        raise CheckpointError(f"{name}: not a Bi-PointFlowNet: {counts}, first {first}")
    for key, needed in expected.items():
        found = tuple(state[key].shape)
        if found != needed:
            raise CheckpointError(f"{name}: {key} has shape {found}, {checkpoint.variant.name} needs {needed}")


@lru_cache(maxsize=16)
def _shapes_of(variant: Variant) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a network, by name."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in BiPointFlowNet(variant).state_dict().items()}


def _check_finite(state: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name}: {key} contains NaN or infinite weights; use an earlier checkpoint")
