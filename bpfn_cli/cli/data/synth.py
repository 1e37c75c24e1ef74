# SPDX-License-Identifier: MIT
"""`bpfn synth`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli import choices
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json
from bpfn_cli.cli.places import worker_processes

if TYPE_CHECKING:
    from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
    from bpfn_cli.data.synthetic.render import SyntheticOptions

HEIGHT = typer.Option("--height", min=27, max=1080, help="Image rows, 16:9; default: 135, or 540 with --raw.")
RAW = "Write maps like a raw download, to try `bpfn prepare`; 10 MB a scene."
STYLE = typer.Option(
    help="driving: traffic like KITTI's (default); rooms: objects that move freely (default with --raw or --height)."
)
LIVE = "Driving: write a record only; scenes are rendered while they are read, new ones in every epoch."
HIDDEN = typer.Option(help="Driving: what happens to points that frame 2 does not see; vanish needs --live.")
NOISE = typer.Option("--disparity-noise", min=0, max=8, help="Driving: noise of the depth, in pixels of disparity.")


@dataclass(frozen=True, kw_only=True)
class SynthFlags:
    """What the command takes."""

    out: Annotated[Path | None, options.out("the scenes; default: a folder in `data/`, named after the scenes")] = None
    train: Annotated[int, typer.Option("--train", min=0, help="Number of training scenes.")] = 400
    val: Annotated[int, typer.Option("--val", min=0, help="Number of test scenes.")] = 40
    height: Annotated[int | None, HEIGHT] = None
    raw: Annotated[bool, options.switch("--raw", RAW)] = False
    style: Annotated[choices.SceneStyle | None, STYLE] = None
    live: Annotated[bool, options.switch("--live", LIVE)] = False
    ground: Annotated[bool, options.switch("--ground", "Driving: keep the ground.")] = False
    hidden: Annotated[choices.Hidden, HIDDEN] = "kept"
    disparity_noise: Annotated[float, NOISE] = 0.0
    seed: options.Seed = 0
    processes: options.Processes = None
    force: options.Force = False
    json: options.Json = False

    @property
    def is_driving(self) -> bool:
        """The style that is meant: only rooms can have raw maps or another height."""
        return self.style == "driving" or (self.style is None and not self.raw and self.height is None)


@options.takes(SynthFlags)
def synth(flags: SynthFlags) -> None:
    """Render synthetic scenes.

    \b
    Examples:
      $ bpfn synth                                                      # 400 training and 40 test scenes
      $ bpfn synth --train 10 --val 2 --seed 1 --out data/small         # a few other scenes
      $ bpfn synth --live --train 2000                                  # new scenes in every epoch
      $ bpfn synth --style rooms                                        # rooms with objects that move freely
      $ bpfn synth --raw --train 10 --val 2 --out downloads/synthetic   # raw maps for `bpfn prepare`
    """
    from bpfn_cli.cli.places import SYNTHETIC, data_root
    from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions

    _check(flags)
    name = f"{SYNTHETIC}-raw" if flags.raw else "driving" if flags.live else SYNTHETIC if flags.is_driving else "rooms"
    folder, chosen = flags.out or data_root() / name, _chosen(flags)
    _write(flags, folder, chosen)
    if flags.json:
        what = {"style": "driving"} if isinstance(chosen, DrivingOptions) else {"height": chosen.height}
        print_json({"out": str(folder), "train": flags.train, "val": flags.val, "seed": chosen.seed, **what})
    after = "prepare flyingthings3d --source" if flags.raw else "train --data" if flags.live else "subset --source"
    finish(folder, "bpfn", *after.split(), folder)


def _check(flags: SynthFlags) -> None:
    """Raises: UsageError: flags that do not go together."""
    from bpfn_cli.errors import UsageError

    if flags.raw and flags.force:
        raise UsageError("--raw --force: raw scenes are not replaced; remove the folder, or choose another --out")
    is_driving = flags.is_driving
    for name, is_given, fits in (
        ("--height", flags.height is not None, not is_driving),
        ("--raw", flags.raw, not is_driving),
        ("--live", flags.live, is_driving),
        ("--ground", flags.ground, is_driving),
        ("--hidden", flags.hidden != "kept", is_driving),
        ("--disparity-noise", flags.disparity_noise > 0, is_driving),
    ):
        if is_given and not fits:
            raise UsageError(f"{name} does not apply to --style {'driving' if is_driving else 'rooms'}")


def _chosen(flags: SynthFlags) -> SyntheticOptions | DrivingOptions:
    from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
    from bpfn_cli.data.synthetic.render import SyntheticOptions

    counts, seed = (flags.train, flags.val), flags.seed
    if not flags.is_driving:
        return SyntheticOptions(*counts, seed, flags.height or (540 if flags.raw else 135))
    noise = flags.disparity_noise
    return DrivingOptions(*counts, seed, ground=flags.ground, hidden=flags.hidden, disparity_noise_px=noise)


def _write(flags: SynthFlags, folder: Path, chosen: SyntheticOptions | DrivingOptions) -> None:
    from bpfn_cli.data.synthetic.driving.live import write_live
    from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
    from bpfn_cli.data.synthetic.raw_maps import write_raw
    from bpfn_cli.data.synthetic.render import write_synthetic

    processes = worker_processes(flags.processes)
    if isinstance(chosen, DrivingOptions) and flags.live:
        write_live(folder, chosen, force=flags.force)
        return
    with ConsoleProgress().bar("rendering scenes") as bar:
        if isinstance(chosen, DrivingOptions) or not flags.raw:
            write_synthetic(folder, chosen, processes, bar, force=flags.force)
        else:
            write_raw(folder, chosen, processes, bar)
