# SPDX-License-Identifier: MIT
"""Flags that several commands share, spelled once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bpfn_cli.precision import Precision


class Strategy(str, Enum):
    """Names of `bpfn_cli.strategies.STRATEGIES`, which cannot be asked without torch."""

    plain = "plain"
    self = "self"
    online = "online"
    meta = "meta"
    netaug = "netaug"


class EarlyStop(str, Enum):
    """Kinds of `EarlyStopSettings`."""

    never = "never"
    hard = "hard"
    linear = "linear"
    auto = "auto"


class Calendar(str, Enum):
    """Calendars of `TrainSettings`."""

    every = "every"
    fast = "fast"


class Selection(str, Enum):
    """What `TrainSettings` may select on."""

    held_out = "held-out"
    test = "test"


Source = Annotated[Path | None, typer.Option("--source", readable=False, help="Folder to read.", metavar="DIR")]
Out = Annotated[Path | None, typer.Option("--out", readable=False, help="Where to write.", metavar="PATH")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        readable=False,
        help="A prepared dataset or subset; else what `data/` or `$BPFN_DATA` holds.",
        metavar="DIR",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", readable=False, help="Folder of run folders.", metavar="DIR")]
VariantName = Annotated[str | None, typer.Option("--variant", help="A named variant.", metavar="NAME")]
CheckpointFile = Annotated[
    Path | None,
    typer.Option("--checkpoint", readable=False, help="Weights: ours, or a published-style .pth.", metavar="FILE"),
]
TeacherFile = Annotated[
    Path | None,
    typer.Option(
        "--teacher", readable=False, help="The teacher's weights; else one is found or trained.", metavar="FILE"
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of all randomness.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Points = Annotated[int | None, typer.Option("--points", min=1, max=10**6, help="Points drawn from each cloud.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, max=10**9, help="Passes over the scenes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands in the way.", metavar="")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone on stdout.", metavar="")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.", metavar="")]
Losses = Annotated[
    list[str] | None,
    typer.Option("--loss", help="A name of `bpfn losses`, or module:attribute; repeatable, summed.", metavar="NAME"),
]
StrategyName = Annotated[
    Strategy | None, typer.Option("--strategy", help="What is trained beside the student, if anything.")
]
EarlyStopName = Annotated[
    EarlyStop | None, typer.Option("--early-stop", help="When the student stops listening to its teacher.")
]
CalendarName = Annotated[
    Calendar | None, typer.Option("--validation-calendar", help="fast: every fifth epoch in mid-training.")
]
MaxTime = Annotated[
    str | None,
    typer.Option("--max-time", help="Save and end before so long: 90m, 23h, d-hh:mm:ss.", metavar="TIME"),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        max=1024,
        help="Processes on this machine, one a GPU (or on the CPU); they share each batch.",
    ),
]
Nodes = Annotated[int, typer.Option("--nodes", min=1, max=1024, help="Machines that run this command together.")]
SelectOn = Annotated[
    Selection | None,
    typer.Option("--select-on", help="What chooses the best checkpoint: held-out training scenes, or the test split."),
]
PrecisionName = Annotated[
    Precision,
    typer.Option("--precision", help="Of the large matrix products: 32 bits, or fewer: faster and coarser."),
]
RecipeFile = Annotated[
    Path | None, typer.Option("-c", "--config", readable=False, help="Recipe (YAML).", metavar="FILE")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a recipe key, e.g. train.lr=1e-3; repeatable.", metavar="KEY=VALUE"),
]
TrainingPrecision = Annotated[
    Precision | None,
    typer.Option("--precision", help="Of the large matrix products: 32 bits, or fewer: faster and coarser."),
]
Processes = Annotated[
    int | None, typer.Option("--processes", min=1, max=1024, help="Worker processes; else one a core.")
]
