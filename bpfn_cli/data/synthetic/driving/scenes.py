# SPDX-License-Identifier: MIT
"""Driving scenes by their key: options, and one scene of a split or of an epoch."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bpfn_cli.choices import Hidden
from bpfn_cli.data.synthetic.driving.drive import draw_drive
from bpfn_cli.data.synthetic.driving.scan import Scan, ScanOptions, scan
from bpfn_cli.data.synthetic.options import SceneOptions
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.rng import keyed_generator

STYLE = "driving"
FORMAT = 1  # increase it with every change of the scenes: equal records promise equal bytes
ENOUGH = 0.25  # share of `points` that a scene must have


@dataclass(frozen=True)
class DrivingOptions(SceneOptions):
    """What to render. Raises: UsageError: a value out of range.

    points: most rows of a scene. ground: keep the ground. hidden: points that frame 2
    does not see: `kept` as in KITTI_s, `removed`, or `vanish`: kept in the first cloud only. disparity_step_px,
    disparity_noise_px: as of `ScanOptions`; KITTI's maps have steps of 1/256 px.
    """

    points: int = 16384
    ground: bool = False
    hidden: Hidden = "kept"
    disparity_step_px: float = 1 / 256
    disparity_noise_px: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("points", 256, 2**18)
        for name in ("disparity_step_px", "disparity_noise_px"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 8:
                raise UsageError(f"synthetic {name} {value!r}: use a number from 0 to 8")
        if self.hidden not in ("kept", "removed", "vanish") or type(self.ground) is not bool:
            raise UsageError(f"synthetic hidden {printable(str(self.hidden))}: use kept, removed or vanish")

    @property
    def rows_correspond(self) -> bool:
        """Not if some points are in the first cloud only."""
        return self.hidden != "vanish"

    def record(self) -> dict[str, Any]:
        """As `SceneOptions.record`."""
        return {"format": FORMAT, "kind": "synthetic", "style": STYLE, **asdict(self)}

    def render(self, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """As `SceneOptions.render`."""
        found = render_drive(f"{split} {index}", self)
        return found.points1.astype(np.float32), found.points2.astype(np.float32)


def render_drive(key: str, options: DrivingOptions) -> Scan:
    """The scene of a key and the seed of `options`; hidden points are left out only if they are `removed`."""
    scanned = ScanOptions(
        options.ground, options.hidden != "kept", options.disparity_step_px, options.disparity_noise_px
    )
    for attempt in itertools.count():
        whole = f"{FORMAT} {STYLE} {options.seed} {key} {attempt}"
        found = scan(draw_drive(whole), options.points, keyed_generator("scan", whole), scanned)
        if options.hidden == "removed":
            found = Scan(*(part[found.visible] for part in found))
        if np.count_nonzero(found.visible) >= ENOUGH * options.points:
            break
    return found
