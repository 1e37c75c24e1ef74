# SPDX-License-Identifier: MIT
"""The variant of a state dict, inferred from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bpfn_cli.errors import CheckpointError
from bpfn_cli.models.variants import BASELINE, VARIANTS, Variant

Shapes = Mapping[str, tuple[int, ...]]

_EXPANDING_BLOCKS = ("level0_2", "level1_1", "level2_1", "level3_1")
_CONTEXT_BLOCKS = ("deconv1_0", "deconv2_1", "deconv3_2", "deconv4_3")


def infer_variant(shapes: Shapes, name: str) -> Variant:
    """Find the variant whose sizes match: a named one if there is one, else one called `custom`.

    Reductions and numbers of neighbors do not affect shapes and are taken as published.
    Raises: CheckpointError: not the layers of a Bi-PointFlowNet; names the first missing one.
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
    def outputs(layer: str) -> int:
        return shapes[f"{layer}.weight"][0]

    def block(name: str) -> int:
        return outputs(f"{name}.composed_module.0")

    separable = "level1.pointwise.weight" in shapes
    encoder = ".expand" if "level3_1.reduce.composed_module.0.weight" in shapes else ""
    widths = [block(f"level0{encoder}")]
    for name in ("level1", "level2", "level3", "level4"):
        c_mid = outputs(f"{name}.weightnet.mlp_convs.2")
        widths.append(outputs(f"{name}.pointwise") * c_mid if separable else outputs(f"{name}.linear"))
    levels = [
        replace(
            BASELINE.levels[index],
            width=widths[index],
            expanded=block(expanding + encoder),
            context=block(context),
            embedding=outputs(f"cross{index}.pos1"),
            c_mid=outputs(f"flow{index}.pointconv_list.0.weightnet.mlp_convs.2"),
        )
        for index, (expanding, context) in enumerate(zip(_EXPANDING_BLOCKS, _CONTEXT_BLOCKS, strict=True))
    ]
    coarsest = replace(BASELINE.levels[-1], width=widths[-1], c_mid=outputs("level4.weightnet.mlp_convs.2"))
    bottleneck = block("level3_1.expand") // block("level3_1.reduce") if encoder else 0
    bn = f"level0{'.reduce' if encoder else ''}.composed_module.1.weight" in shapes
    return Variant("custom", (*levels, coarsest), bn, separable, bottleneck)  # type: ignore[arg-type]
