# SPDX-License-Identifier: MIT
"""Initialize a small network from a large one by slicing its weights."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from bpfn_cli.errors import UsageError, printable
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.variants import OFFSET_CHANNELS, Variant


@dataclass(frozen=True)
class SliceReport:
    """Names of the tensors that were copied in full, sliced, and left as initialized."""

    copied: tuple[str, ...]
    sliced: tuple[str, ...]
    new: tuple[str, ...]


def initialize_from(student: BiPointFlowNet, teacher: BiPointFlowNet) -> SliceReport:
    """Overwrite the student's weights with the first channels of the teacher's, in place.

    Inputs that are concatenations are cut part by part, and PointConv's linear map, flattened as
    channel * c_mid + w, is cut in both factors: a prefix of it would mix channels.
    Layers of a kind that the teacher does not have stay as initialized.
    Raises: UsageError: as `check_slice`.
    """
    check_slice(student.variant, teacher.variant)
    source, state = teacher.state_dict(), student.state_dict()
    copied, sliced, new = [], [], []
    for name, own in state.items():
        if name not in source or not _is_slice(name, student.variant, teacher.variant):
            new.append(name)
        elif source[name].shape == own.shape:
            state[name] = source[name].clone()
            copied.append(name)
        else:
            state[name] = _slice(name, source[name], own, student.variant, teacher.variant)
            sliced.append(name)
    student.load_state_dict(state)
    return SliceReport(tuple(copied), tuple(sliced), tuple(new))


def check_slice(student: Variant, teacher: Variant) -> None:
    """Raises: UsageError: a size of the student is larger, or it lacks the batch norms of the teacher."""
    if teacher.bn and not student.bn:
        lacks = f"{printable(student.name)} has none of the batch norms that {printable(teacher.name)} was trained with"
        raise UsageError(f"{lacks}; add them (--bn, or bn: true in the sizes)")
    for level, (own, other) in enumerate(zip(student.levels, teacher.levels, strict=True)):
        sizes = ["width", "expanded", "context", "embedding"]
        sizes += ["estimator", "estimator_features"] if own.embedding else []
        sizes += [] if student.separable.at(level) or teacher.separable.at(level) else ["c_mid"]
        for size in sizes:
            if (wanted := getattr(own, size)) > (most := getattr(other, size)):
                raise UsageError(
                    f"{printable(student.name)}: {size} {wanted} at level {level} cannot be cut from the {most} of "
                    f"{printable(teacher.name)}; use a larger teacher or a smaller student"
                )


def slice_rows(name: str, whole: torch.Size, part: torch.Size, student: Variant, teacher: Variant) -> Tensor:
    """Positions, in a flattened weight of the teacher, of the elements of the student's slice.

    Args: name: of the weight. whole, part: its shapes in teacher and student.
    Raises: UsageError: the student is wider than the teacher, or the weight is not comparable.
    """
    if not _is_slice(name, student, teacher):
        raise UsageError(f"{name}: the student's weight is not a slice of the teacher's; use the same c_mid for both")
    rows = torch.arange(whole.numel()).view(whole)
    return rows.flatten() if whole == part else _slice(name, rows, torch.empty(part), student, teacher).flatten()


def _is_slice(name: str, student: Variant, teacher: Variant) -> bool:
    """False if the weights are not comparable: a separable map groups its outputs by c_mid."""
    if not re.search(r"\.(pointwise|conv)\.", name):
        return True
    return _c_mid(name, student) == _c_mid(name, teacher)


def _slice(name: str, weight: Tensor, own: Tensor, student: Variant, teacher: Variant) -> Tensor:
    if own.dim() != weight.dim() or any(a > b for a, b in zip(own.shape, weight.shape, strict=True)):
        raise UsageError(
            f"{name}: the student's {tuple(own.shape)} cannot be cut from the teacher's {tuple(weight.shape)}; "
            "use a larger teacher or a smaller student"
        )
    parts, teacher_parts = input_parts(name, student), input_parts(name, teacher)
    if ".conv." in name:  # depthwise: its outputs are the layer's inputs
        return _cut(weight, 0, parts, teacher_parts)
    weight = weight[: own.shape[0]]
    if weight.dim() == 1:
        return weight.clone()
    if name.endswith(".linear.weight"):
        small, large = _c_mid(name, student), _c_mid(name, teacher)
        by_channel = weight.unflatten(1, (-1, large))
        return _cut(by_channel, 1, parts, teacher_parts)[:, :, :small].flatten(1)
    return _cut(weight, 1, parts or [own.shape[1]], teacher_parts or [weight.shape[1]])


def _cut(weight: Tensor, dimension: int, parts: list[int], teacher_parts: list[int]) -> Tensor:
    """The first channels of each part of a dimension."""
    pieces = weight.split(teacher_parts, dimension)
    cut = [piece.narrow(dimension, 0, size) for piece, size in zip(pieces, parts, strict=True)]
    return torch.cat(cut, dimension)


def input_parts(name: str, variant: Variant) -> list[int]:
    """Widths of the tensors concatenated in the input of a parameter's layer; empty: a single one."""
    levels = variant.levels
    if found := re.match(r"cross(\d)\.cross_t(11|22)\.", name):
        level = levels[int(found[1])]
        return [level.width, level.context]
    if found := re.match(r"flow(\d)\.pointconv_list\.(\d)\.(linear|pointwise|conv)\.", name):
        index, level = int(found[1]), levels[int(found[1])]
        if found[2] == "1":
            return [OFFSET_CHANNELS, level.estimator]
        coarser = [levels[index + 1].estimator_features] if index < 3 else []
        return [OFFSET_CHANNELS, level.width, *coarser, level.embedding]
    if found := re.match(r"level(\d)\.(linear|pointwise|conv)\.", name):
        return [OFFSET_CHANNELS, levels[int(found[1]) - 1].expanded]
    return []


def _c_mid(name: str, variant: Variant) -> int:
    found = re.match(r"(?:level|flow)(\d)", name)
    if found is None:
        raise AssertionError(f"{name} belongs to no level")
    return variant.levels[int(found[1])].c_mid
