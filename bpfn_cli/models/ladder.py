# SPDX-License-Identifier: MIT
"""The ladder of a small network: the steps that made it from a teacher, with the size and the error after each.

A checkpoint carries its ladder in its metadata; each command that makes a smaller network from it adds a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bpfn_cli.choices import Storage
from bpfn_cli.models.bipointflownet import BiPointFlowNet
from bpfn_cli.models.checkpoint import checkpoint_bytes
from bpfn_cli.models.cost import cost_of

KEY = "ladder"  # of a checkpoint's metadata
TEACHER, PRUNED, DISTILLED = "teacher", "pruned", "distilled"
ORIGINAL = "original"  # a network whose earlier steps are not known
POINTS = 8192  # at which MACs are counted, where nothing else is asked for

_Text = Annotated[str, Field(min_length=1, max_length=255)]
_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Metres = Annotated[float, Field(ge=0)] | None


class Step(BaseModel):
    """A network on the way.

    Attributes:
        step: what made it. network: name of its sizes. macs: of one pair of `points` points. bytes: of its file.
        epe3d_m: measured `on` these scenes, when it was made; None: not measured.
        moved_m: mean distance of its flow from that of the step before; None: not measured.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    step: _Text
    network: _Text
    parameters: _Count
    macs: _Count
    points: _Count
    bytes: _Count
    epe3d_m: _Metres = None
    on: _Text | None = None
    moved_m: _Metres = None


_STEPS = TypeAdapter(Annotated[tuple[Step, ...], Field(max_length=64)])


def step_of(
    step: str,
    model: BiPointFlowNet,
    points: int | None = None,
    storage: Storage = "float32",
    *,
    epe3d_m: float | None = None,
    on: str | None = None,
    moved_m: float | None = None,
) -> Step:
    """A step that ends with this network, stored with these bits. points: for the MACs; None: 8192."""
    points = points or POINTS
    cost, size = cost_of(model.variant, points), len(checkpoint_bytes(model, {}, storage=storage))
    sizes = {"parameters": cost.parameters, "macs": cost.macs, "points": points, "bytes": size}
    return Step(step=step, network=model.variant.name, **sizes, epe3d_m=epe3d_m, on=on, moved_m=moved_m)


def read_ladder(metadata: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps in the metadata of a checkpoint; none if it has no valid ladder, as in files of earlier versions."""
    steps = metadata.get(KEY)
    try:
        return _STEPS.validate_python(tuple(steps)) if isinstance(steps, list | tuple) else ()
    except ValidationError:
        return ()


def plain_steps(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Steps as metadata, which `read_ladder` reads."""
    return [step.model_dump(exclude_none=True) for step in steps]
