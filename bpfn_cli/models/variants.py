# SPDX-License-Identifier: MIT
"""Sizes of the network as data: a variant is a value, known by name or by shapes. Importable without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from bpfn_cli.errors import CheckpointError, UsageError, did_you_mean

OFFSET_CHANNELS = 3  # a PointConv sees the offset before the features
WEIGHTNET_HIDDEN = 8
UPSAMPLING_NEIGHBORS = 3  # between which features and flows of a coarser level are interpolated
SEARCHES = ("encoder", "embedding", "estimator")  # for neighbors
CUSTOM = "custom"  # the name of sizes that have no other
_EXPANDING_BLOCKS = ("level0_2", "level1_1", "level2_1", "level3_1")
_REFINING_BLOCKS = ("level0_1", "level1_0", "level2_0", "level3_0")
_CONTEXT_BLOCKS = ("deconv1_0", "deconv2_1", "deconv3_2", "deconv4_3")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Level:
    """Sizes of one pyramid level.

    Attributes:
        reduction: points of the next finer level per point of this one. width: encoder features F_l.
        expanded: width of the 1x1 block before the next coarser level; 0 at the coarsest.
        context: width of the features from the next coarser level; 0 at the coarsest.
        embedding: width of the bidirectional flow embedding; 0 at the coarsest.
        c_mid: WeightNet outputs of `level{l}` and `flow{l}`.
        estimator: width of the PointConvs and the first Conv1d of the flow estimator; without effect at the coarsest.
        estimator_features: width of what the flow estimator passes to the next finer one; likewise.
    """

    reduction: int
    width: int
    expanded: int
    context: int
    embedding: int
    c_mid: int
    estimator: int = 128
    estimator_features: int = 64


Levels = tuple[Level, Level, Level, Level, Level]


@dataclass(frozen=True)
class Separable:
    """Levels whose PointConv has a depthwise and a pointwise map instead of a linear one: of 1 to 4 and of 0 to 3."""

    encoder: tuple[int, ...] = ()
    estimators: tuple[int, ...] = ()

    @classmethod
    def read(cls, value: bool | Mapping[str, Iterable[int]]) -> Separable:
        """From plain values: all levels, none, or the levels of each part."""
        if isinstance(value, bool):
            return cls((1, 2, 3, 4), (0, 1, 2, 3)) if value else cls()
        return cls(**{part: tuple(sorted(set(levels))) for part, levels in value.items()})

    def plain(self) -> bool | dict[str, list[int]]:
        """Plain values that `read` accepts."""
        parts = {part: list(levels) for part, levels in vars(self).items()}
        return next((value for value in (False, True) if Separable.read(value) == self), parts)

    def at(self, level: int) -> bool:
        """Whether a PointConv of this level is separable."""
        return level in self.encoder or level in self.estimators


@dataclass(frozen=True)
class Variant:
    """A whole network: five levels, finest first, and what they have in common.

    Attributes:
        bn: batch norm in all 1x1 blocks, WeightNets, embeddings and encoder PointConvs.
        separable: where PointConv is separable.
        bottleneck: 0, or the factor by which the 1x1 encoder blocks narrow in the middle.
        residual: widths in the middle of residual blocks at levels 0 to 3, each in place of the 1x1 encoder block that
            keeps the width; none if empty.
        encoder_neighbors, embedding_neighbors, estimator_neighbors: k of the three neighbor searches.
    """

    name: str
    levels: Levels
    bn: bool = False
    separable: Separable = Separable()
    bottleneck: int = 0
    residual: tuple[int, ...] = ()
    encoder_neighbors: int = 16
    embedding_neighbors: int = 32
    estimator_neighbors: int = 9

    @property
    def reductions(self) -> tuple[int, ...]:
        return tuple(level.reduction for level in self.levels[1:])

    @property
    def least_points(self) -> int:
        """Fewest points per cloud with which levels 3 and 4 still have enough neighbors."""
        searches = self.encoder_neighbors, self.embedding_neighbors, self.estimator_neighbors
        at_level_3 = max(*searches, UPSAMPLING_NEIGHBORS * self.reductions[-1])
        return at_level_3 * prod(self.reductions[:-1])


# Cheng & Ko, ECCV 2022. Level 0 has no PointConv in the encoder; its c_mid is that of flow0.
BASELINE = Variant(
    name="baseline",
    levels=(
        Level(reduction=1, width=32, expanded=64, context=32, embedding=32, c_mid=16),
        Level(reduction=4, width=64, expanded=128, context=32, embedding=64, c_mid=16),
        Level(reduction=4, width=128, expanded=256, context=64, embedding=128, c_mid=16),
        Level(reduction=2, width=256, expanded=512, context=64, embedding=256, c_mid=16),
        Level(reduction=4, width=256, expanded=0, context=0, embedding=0, c_mid=16),
    ),
)


def slim(
    base: Variant,
    name: str,
    *,
    width: float | None = None,
    c_mid: int | Sequence[int] | None = None,
    bn: bool | None = None,
    separable: bool | Separable | None = None,
    bottleneck: int | None = None,
    residual: Sequence[int] | None = None,
    neighbors: Mapping[str, int | None] | None = None,
) -> Variant:
    """Change some sizes of `base`; None leaves a size as it is.

    Args:
        width: factor on the encoder, embedding and expanded widths, and on `residual`; contexts and estimators keep
            theirs.
        c_mid: one number, or five (levels 0 to 4). separable: everywhere, nowhere, or where; bn, bottleneck, residual:
            see `Variant`.
        neighbors: k of the searches of `encoder`, `embedding` and `estimator`.
    Raises: UsageError: a size that no network can have.
    """
    levels, residual = base.levels, base.residual if residual is None else tuple(residual)
    if residual and (len(residual) != 4 or not all(1 <= hidden <= 1 << 14 for hidden in residual)):
        raise UsageError(f"residual {list(residual)}: use four widths (levels 0 to 3), or none")
    if width is not None:
        levels = tuple(_widen(level, width) for level in levels)  # type: ignore[assignment]
        residual = tuple(_scaled(hidden, width) for hidden in residual)
    if c_mid is not None:
        counts = [c_mid] * 5 if isinstance(c_mid, int) else c_mid
        levels = _with_c_mid(levels, counts)
    if bottleneck is not None and not 0 <= bottleneck <= 16:
        raise UsageError(f"--bottleneck {bottleneck}: use a factor from 2 to 16, or 0 for none")
    if isinstance(separable, bool):
        separable = Separable.read(separable)
    sizes: dict[str, Any] = {"bn": bn, "separable": separable, "bottleneck": bottleneck, "residual": residual}
    sizes |= _neighbor_counts(neighbors or {})
    changes = {key: value for key, value in sizes.items() if value is not None}
    variant = replace(base, name=name, levels=levels, **changes)
    _check_separable(variant)
    return variant


def _neighbor_counts(neighbors: Mapping[str, int | None]) -> dict[str, int | None]:
    for search, count in neighbors.items():
        if search not in SEARCHES:
            raise UsageError(f"neighbors {search}: unknown; use {', '.join(SEARCHES)}")
        if count is not None and not 1 <= count <= 64:
            raise UsageError(f"neighbors {search} {count}: use 1 to 64")
    return {f"{search}_neighbors": count for search, count in neighbors.items()}


def _with_c_mid(levels: Levels, counts: Sequence[int]) -> Levels:
    if len(counts) != 5 or not all(1 <= count <= 64 for count in counts):
        given = ",".join(map(str, counts))
        raise UsageError(f"--c-mid {given}: use one number, or five (levels 0 to 4), each from 1 to 64")
    return tuple(replace(level, c_mid=count) for level, count in zip(levels, counts, strict=True))  # type: ignore[return-value]


def _widen(level: Level, factor: float) -> Level:
    if not 0 < factor <= 4:
        raise UsageError(f"--width {factor}: use a factor above 0 and at most 4, such as 0.5")
    changed = {name: _scaled(getattr(level, name), factor) for name in ("width", "expanded", "embedding")}
    return replace(level, **changed)


def _scaled(width: int, factor: float) -> int:
    return max(1, round(width * factor)) if width else 0


def _check_separable(variant: Variant) -> None:
    parts = variant.separable
    if not set(parts.encoder) <= {1, 2, 3, 4} or not set(parts.estimators) <= {0, 1, 2, 3}:
        given = f"{list(parts.encoder)} of the encoder, {list(parts.estimators)} of the estimators"
        raise UsageError(f"separable: levels {given}: use 1 to 4 for the encoder, 0 to 3 for the estimators")
    for index, level in enumerate(variant.levels):
        outputs = [level.estimator] if index in parts.estimators else []
        outputs += [level.width] if index in parts.encoder else []
        if any(output % level.c_mid for output in outputs):
            raise UsageError(
                f"separable: c_mid {level.c_mid} of level {index} must divide its widths {outputs}; choose another"
            )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        BASELINE,
        # Report 1: encoder, embedding and level-4 widths halved, batch norm on.
        slim(BASELINE, "half", width=0.5, bn=True),
        # The idea of report 6's "DecreasedLinear" everywhere: depthwise and pointwise maps instead of PointConv's
        # linear one.
        slim(BASELINE, "declinear", separable=True),
        # Report 6's "DecreasedLinear": in the encoder's levels 3 and 4 alone, and residual bottlenecks x + F(x) + D(x)
        # with ReLU after the sum in place of `level0_1`, `level1_0`, `level2_0` and `level3_0`. docs/extending.md says
        # where it differs from the report's.
        slim(BASELINE, "declinear34", separable=Separable(encoder=(3, 4)), residual=(16, 32, 64, 64)),
        # Report 6: fewer WeightNet outputs.
        slim(BASELINE, "weightnet8", c_mid=8),
        slim(BASELINE, "weightnet4", c_mid=4),
        # Report 6 says 8 at the fine and 4 at the coarse levels, but only the reverse gives the sizes it prints.
        slim(BASELINE, "weightnet48", c_mid=(4, 4, 4, 8, 8)),
        # `half` with 1x1 encoder blocks that narrow to a quarter of their output in the middle.
        slim(BASELINE, "half_bottleneck", width=0.5, bn=True, bottleneck=4),
    )
}


def variant_named(name: str, others: Iterable[str] = ()) -> Variant:
    """Look up a variant. Raises: UsageError with the nearest of these names and `others`."""
    if name not in VARIANTS:
        known = dict.fromkeys([*VARIANTS, *others])
        hint = did_you_mean(name, known) or "."
        raise UsageError(f"unknown variant {name!r}{hint} Known: {', '.join(known)}")
    return VARIANTS[name]


def known_variant(variant: Variant) -> Variant | None:
    """The named variant of the same sizes, if there is one."""
    return next((known for known in VARIANTS.values() if replace(variant, name=known.name) == known), None)


def has_sizes_of(variant: Variant, known: Variant) -> bool:
    """Whether two networks differ at most in their names and batch norm."""
    return replace(variant, name=known.name, bn=known.bn) == known


def file_name(path: Path) -> str:
    """The name of a network without one: the stem of its file."""
    return re.sub(r"[^\w.-]", "_", path.stem)[:64]


def infer_variant(shapes: Shapes, name: str) -> Variant:
    """Find the variant whose sizes match: a named one if there is one, else one called `custom`.

    Reductions and numbers of neighbors do not affect shapes and are taken as published.
    Raises: CheckpointError: not the layers of a Bi-PointFlowNet; names the first missing one.
    """
    try:
        variant = _read_sizes(shapes)
    except KeyError as error:
        found = f"{error.args[0]} is missing among its {len(shapes)} tensors"
        raise CheckpointError(f"{name}: not a Bi-PointFlowNet: {found}") from None
    except (IndexError, ZeroDivisionError):
        raise CheckpointError(f"{name}: not a Bi-PointFlowNet: some of its tensors have no sizes") from None
    for known in VARIANTS.values():
        if has_sizes_of(variant, known):
            return replace(variant, name=known.name)
    return variant


def _read_sizes(shapes: Shapes) -> Variant:
    def outputs(layer: str) -> int:
        count = shapes[f"{layer}.weight"][0]
        if count == 0:
            raise IndexError(layer)
        return count

    def block(name: str) -> int:
        return outputs(f"{name}.composed_module.0")

    separable = Separable(
        tuple(level for level in (1, 2, 3, 4) if f"level{level}.pointwise.weight" in shapes),
        tuple(level for level in (0, 1, 2, 3) if f"flow{level}.pointconv_list.0.pointwise.weight" in shapes),
    )
    encoder = ".expand" if "level3_1.reduce.composed_module.0.weight" in shapes else ""
    widths = [block(f"level0{encoder}")]
    for level in (1, 2, 3, 4):
        name, is_separable = f"level{level}", level in separable.encoder
        c_mid = outputs(f"{name}.weightnet.mlp_convs.2")
        widths.append(outputs(f"{name}.pointwise") * c_mid if is_separable else outputs(f"{name}.linear"))
    levels = [
        replace(
            BASELINE.levels[index],
            width=widths[index],
            expanded=block(expanding + encoder),
            context=block(context),
            embedding=outputs(f"cross{index}.pos1"),
            c_mid=outputs(f"flow{index}.pointconv_list.0.weightnet.mlp_convs.2"),
            estimator=block(f"flow{index}.mlp_convs.0"),
            estimator_features=block(f"flow{index}.mlp_convs.1"),
        )
        for index, (expanding, context) in enumerate(zip(_EXPANDING_BLOCKS, _CONTEXT_BLOCKS, strict=True))
    ]
    coarsest = replace(BASELINE.levels[-1], width=widths[-1], c_mid=outputs("level4.weightnet.mlp_convs.2"))
    bottleneck = block("level3_1.expand") // block("level3_1.reduce") if encoder else 0
    has_residual = f"{_REFINING_BLOCKS[0]}.middle.composed_module.0.weight" in shapes
    residual = tuple(block(f"{name}.middle") for name in _REFINING_BLOCKS) if has_residual else ()
    bn = f"level0{'.reduce' if encoder else ''}.composed_module.1.weight" in shapes
    return Variant(CUSTOM, (*levels, coarsest), bn, separable, bottleneck, residual)  # type: ignore[arg-type]
