# SPDX-License-Identifier: MIT
"""Which variant a state dict belongs to, from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bpfn_cli.errors import CheckpointError
from bpfn_cli.models.variants import BASELINE, VARIANTS, Level, Variant

Shapes = Mapping[str, tuple[int, ...]]

_EXPANDING_BLOCKS = ("level0_2", "level1_1", "level2_1", "level3_1")
_CONTEXT_BLOCKS = ("deconv1_0", "deconv2_1", "deconv3_2", "deconv4_3")


def infer_variant(shapes: Shapes, name: str) -> Variant:
    """The variant whose sizes fit: a named one if there is one, else one called `custom`.

    Reductions and neighbor numbers leave no trace in shapes and are taken as published.
    Raises: CheckpointError: not the layers of a Bi-PointFlowNet; names the first one lacking.
    """
    try:
        variant = _read_sizes(shapes)
    except KeyError as error:
        raise CheckpointError(
            f"{name}: not a Bi-PointFlowNet: {error.args[0]} is missing among its {len(shapes)} tensors"
        ) from None
    except (IndexError, ZeroDivisionError):
        raise CheckpointError(f"{name}: not a Bi-PointFlowNet: some of its tensors have no sizes") from None
    for known in VARIANTS.values():
        if replace(variant, name=known.name, bn=known.bn) == known:
            return replace(variant, name=known.name)
    return variant


def _read_sizes(shapes: Shapes) -> Variant:
    bottleneck = _bottleneck(shapes)

    def block(name: str) -> int:
        return _outputs(shapes, f"{name}.expand" if bottleneck else name)

    def c_mid(layer: str) -> int:
        return shapes[f"{layer}.weightnet.mlp_convs.2.weight"][0]

    separable = "level1.pointwise.weight" in shapes

    def width(level: int) -> int:
        if level == 0:
            return block("level0")
        layer = f"level{level}"
        return (
            shapes[f"{layer}.pointwise.weight"][0] * c_mid(layer) if separable else shapes[f"{layer}.linear.weight"][0]
        )

    levels = [
        Level(
            reduction=BASELINE.levels[index].reduction,
            width=width(index),
            expanded=block(_EXPANDING_BLOCKS[index]) if index < 4 else 0,
            context=_outputs(shapes, _CONTEXT_BLOCKS[index]) if index < 4 else 0,
            embedding=shapes[f"cross{index}.pos1.weight"][0] if index < 4 else 0,
            c_mid=c_mid(f"flow{index}.pointconv_list.0" if index < 4 else "level4"),
        )
        for index in range(5)
    ]
    first_norm = "level0.reduce.composed_module.1.weight" if bottleneck else "level0.composed_module.1.weight"
    return Variant("custom", tuple(levels), bn=first_norm in shapes, separable=separable, bottleneck=bottleneck)  # type: ignore[arg-type]


def _bottleneck(shapes: Shapes) -> int:
    if "level3_1.reduce.composed_module.0.weight" not in shapes:
        return 0
    return _outputs(shapes, "level3_1.expand") // _outputs(shapes, "level3_1.reduce")


def _outputs(shapes: Shapes, block: str) -> int:
    return shapes[f"{block}.composed_module.0.weight"][0]
