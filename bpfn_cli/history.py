# SPDX-License-Identifier: MIT
"""The history of a small network: the steps that made it from a teacher, with the size and the error after each.

A checkpoint carries its history in its metadata; each command that makes a smaller network from it adds a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

KEY = "history"  # of a checkpoint's metadata
TEACHER, PRUNED, DISTILLED, TRAINED = "teacher", "pruned", "distilled", "trained"
ORIGINAL = "original"  # a network whose earlier steps are not known

_Text = Annotated[str, Field(min_length=1, max_length=255)]
_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Metres = Annotated[float, Field(ge=0)] | None


class Step(BaseModel):
    """A network on the way.

    Attributes:
        step: what made it. network: name of its sizes. macs: of one pair of `points` points. bytes: of its file.
        epe3d_m: measured `on` these scenes, when it was made; None: not measured.
        moved_m: mean distance of its flow from that of the step before; None: not measured.
        sha256: of its file; None: not known, as where the file holds this step.
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
    sha256: _Text | None = None


_STEPS = TypeAdapter(Annotated[tuple[Step, ...], Field(max_length=64)])


def read_history(metadata: Mapping[str, Any], sha256: str | None = None) -> tuple[Step, ...]:
    """The steps in the metadata of a checkpoint; none if it has no valid history, as in files of earlier versions.

    sha256: of the file, which its last step made.
    """
    steps = metadata.get(KEY)
    try:
        found = _STEPS.validate_python(tuple(steps)) if isinstance(steps, list | tuple) else ()
    except ValidationError:
        return ()
    return (*found[:-1], found[-1].model_copy(update={"sha256": sha256})) if found and sha256 else found


def plain_steps(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Steps as metadata, which `read_history` reads."""
    return [step.model_dump(exclude_none=True) for step in steps]
