# SPDX-License-Identifier: MIT
"""Sizes of a network as users give them: a name, a checkpoint, a YAML file, or keys of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
from pydantic import BeforeValidator, Field, PlainSerializer, WrapValidator
from pydantic_core import PydanticCustomError

from bpfn_cli.config import ABOUT_SIZES, ABOUT_WEIGHTS, build, read_yaml, settings
from bpfn_cli.errors import CheckpointError, UsageError, printable
from bpfn_cli.files import expanded
from bpfn_cli.models.checkpoint import SIZES_SUFFIXES, Few, Name, read_checkpoint
from bpfn_cli.models.variants import (
    CUSTOM,
    VARIANTS,
    Level,
    Levels,
    Separable,
    Variant,
    file_name,
    has_sizes_of,
    known_variant,
    slim,
    variant_named,
)
from bpfn_cli.shipped import find_weights, shipped_networks

Width = Annotated[int, Field(ge=1, le=1 << 14)]
Four, Five = Field(min_length=4, max_length=4), Field(min_length=5, max_length=5)


def _for_all_levels(value: Any) -> Any:
    """Accept one number for all five levels."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,) * 5
    return tuple(value) if isinstance(value, list) else value


def _by_part(value: Any) -> Any:
    """Accept true or false for all levels, and a list for levels of the encoder."""
    if isinstance(value, bool):
        value = asdict(Separable.read(value))
    elif isinstance(value, list):
        value = {"encoder": value}
    if not isinstance(value, dict):
        return value
    return {part: tuple(levels) if isinstance(levels, list) else levels for part, levels in value.items()}


@settings
class Widths:
    """Widths by level, finest first; `Level` describes them. null: as in the base."""

    encoder: Annotated[tuple[Width, ...], Five] | None = None
    expanded: Annotated[tuple[Width, ...], Four] | None = None
    context: Annotated[tuple[Width, ...], Four] | None = None
    embedding: Annotated[tuple[Width, ...], Four] | None = None
    estimator: Annotated[tuple[Width, ...], Four] | None = None
    estimator_features: Annotated[tuple[Width, ...], Four] | None = None


@settings
class Neighbors:
    """Numbers of neighbors of the three searches. null: as in the base."""

    encoder: Few | None = None
    embedding: Few | None = None
    estimator: Few | None = None


@settings
class SeparableLevels:
    """Levels with separable PointConvs; a part that is not given has none."""

    encoder: tuple[Annotated[int, Field(ge=1, le=4)], ...] = ()
    estimators: tuple[Annotated[int, Field(ge=0, le=3)], ...] = ()


NO_WIDTHS, NO_NEIGHBORS = Widths(), Neighbors()


@settings
class Sizes:
    """Sizes as the difference from another network; a key that is null leaves the size as it is.

    base: a variant, a checkpoint, or the name of a network that comes with bpfn. name: for tables and run folders.
    width: factor on the widths of encoder, expansion, embedding and residual blocks, also on those given here. widths:
    by level.
    reductions: points of a level per point of the next coarser one. c_mid: WeightNet outputs, one number or five
    (levels 0 to 4). separable: true, false, a list of levels of the encoder, or the levels of each part. neighbors, bn,
    bottleneck, residual: as in `Variant`.
    """

    base: str = "baseline"
    name: Name | None = None
    width: Annotated[float, Field(gt=0, le=4)] | None = None
    widths: Widths = NO_WIDTHS
    reductions: Annotated[tuple[Few, ...], Four] | None = None
    c_mid: Annotated[Annotated[tuple[Few, ...], Five] | None, BeforeValidator(_for_all_levels)] = None
    neighbors: Neighbors = NO_NEIGHBORS
    bn: bool | None = None
    separable: Annotated[SeparableLevels | None, BeforeValidator(_by_part)] = None
    bottleneck: Annotated[int, Field(ge=0, le=16)] | None = None
    residual: tuple[Width, ...] | None = None

    def variant(self, default_name: str | None = None) -> Variant:
        """The network. default_name: if none is given; without it, a named variant with these sizes gives the name.

        Raises: UsageError: sizes that do not fit together, or the name of a variant with other sizes.
        """
        if Path(self.base).suffix in SIZES_SUFFIXES:
            raise UsageError(f"base {printable(self.base)}: a base is a variant or a checkpoint, not a file of sizes")
        base = find_variant(self.base)
        base = replace(base, levels=self._with_columns(base.levels))
        changes = {key: getattr(self, key) for key in ("width", "c_mid", "bn", "bottleneck", "residual")}
        separable = None if self.separable is None else Separable.read(vars(self.separable))
        made = slim(base, CUSTOM, **changes, separable=separable, neighbors=vars(self.neighbors))
        name = self.name or default_name
        if name is None:
            return known_variant(made) or made
        if name in VARIANTS and not has_sizes_of(made, VARIANTS[name]):
            raise UsageError(f"{name}: these are not the sizes of the variant of this name; set another `name`")
        return replace(made, name=name)

    def _with_columns(self, levels: Levels) -> Levels:
        columns = {
            "width": self.widths.encoder,
            "expanded": self.widths.expanded,
            "context": self.widths.context,
            "embedding": self.widths.embedding,
            "estimator": self.widths.estimator,
            "estimator_features": self.widths.estimator_features,
            "reduction": self.reductions and (levels[0].reduction, *self.reductions),
        }
        for field, values in columns.items():
            changed = [replace(level, **{field: value}) for level, value in zip(levels, values or (), strict=False)]
            levels = (*changed, *levels[len(changed) :])  # type: ignore[assignment]
        return levels


def sizes_tree(variant: Variant) -> dict[str, Any]:
    """All sizes of a network as the values of `Sizes`, without its name."""
    levels = variant.levels

    def column(field: str, count: int = len(levels)) -> list[int]:
        return [getattr(level, field) for level in levels][:count]

    widths = {name: column(name, 4) for name in ("expanded", "context", "embedding")}
    # Sizes that earlier versions of bpfn did not have are left out where they are as published.
    for name in ("estimator", "estimator_features"):
        if column(name) != [getattr(Level, name)] * len(levels):
            widths[name] = column(name, 4)
    return {
        "widths": {"encoder": column("width"), **widths},
        "reductions": list(variant.reductions),
        "c_mid": column("c_mid"),
        "neighbors": {name: getattr(variant, f"{name}_neighbors") for name in vars(NO_NEIGHBORS)},
        "bn": variant.bn,
        "separable": variant.separable.plain(),
        "bottleneck": variant.bottleneck,
        **({"residual": list(variant.residual)} if variant.residual else {}),
    }


def variant_tree(variant: Variant) -> str | dict[str, Any]:
    """A network as plain values that `AnyVariant` reads again: the name of a known variant, or all sizes."""
    return variant.name if VARIANTS.get(variant.name) == variant else {"name": variant.name, **sizes_tree(variant)}


def sizes_identity(variant: Variant) -> str | dict[str, Any]:
    """Plain values that are equal for networks of equal sizes, whatever their names."""
    known = known_variant(variant)
    return sizes_tree(variant) if known is None else known.name


def find_variant(given: str) -> Variant:
    """The network that `given` means: the name of a variant or of a network that comes with bpfn, or a file.

    A checkpoint stands for its sizes, a `.yaml` file holds the keys of `Sizes`.
    Raises: UsageError: unknown name, or mistakes in the YAML file. CheckpointError: as `read_checkpoint`.
    """
    path = expanded(given)
    if given not in VARIANTS and path.suffix in SIZES_SUFFIXES:
        sizes = build(Sizes, read_yaml(path, "no such file of sizes; docs/extending.md shows one"))
        try:
            return sizes.variant(file_name(path))
        except (UsageError, CheckpointError) as error:
            raise type(error)(f"{printable(path)}: {error}") from None
    if is_checkpoint(given):
        return read_checkpoint(find_weights(path)).variant
    return variant_named(given, shipped_networks())


def is_checkpoint(given: str) -> bool:
    """Whether `given` means a file of weights, also one that is missing, rather than sizes."""
    path = Path(given)
    if given in VARIANTS or path.suffix in SIZES_SUFFIXES:
        return False
    return given in shipped_networks() or bool(path.suffix) or path.name != given or path.is_file()


def _read_variant(value: Any, _: Callable[[Any], Any]) -> Variant:
    if isinstance(value, Variant):
        return value
    try:
        if isinstance(value, str):
            return find_variant(value)
        # As JSON, like the recipe around it: then lists are accepted for tuples.
        sizes: Sizes = pydantic.TypeAdapter(Sizes).validate_json(json.dumps(value), strict=True)
        return sizes.variant()
    except (UsageError, CheckpointError) as error:  # reported with the other mistakes of the recipe
        kind = ABOUT_WEIGHTS if isinstance(error, CheckpointError) else ABOUT_SIZES
        raise PydanticCustomError(kind, "{problem}", {"problem": str(error)}) from None


if TYPE_CHECKING:
    AnyVariant = Variant
else:
    # A field of settings: a name, a file, or the keys of `Sizes`; its value is the `Variant`.
    AnyVariant = Annotated[Sizes, WrapValidator(_read_variant), PlainSerializer(variant_tree)]
