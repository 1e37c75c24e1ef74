# SPDX-License-Identifier: MIT
"""Flags that several commands share, spelled once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from bpfn_cli import choices
from bpfn_cli.precision import Precision

Flags = TypeVar("Flags")


def takes(kind: type[Flags]) -> Callable[[Callable[[Flags], None]], Callable[..., None]]:
    """Make a command of a function of one dataclass: the fields of `kind` become the parameters that Typer reads."""
    hints = get_type_hints(kind, include_extras=True)
    parameters = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name])
        for one in fields(kind)  # type: ignore[arg-type]
    ]

    def decorate(function: Callable[[Flags], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**values: Any) -> None:
            function(kind(**values))

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


Source = Annotated[Path | None, typer.Option("--source", readable=False, help="Folder to read.", metavar="DIR")]
Out = Annotated[Path | None, typer.Option("--out", readable=False, help="Where to write.", metavar="PATH")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        readable=False,
        help="Prepared dataset or subset; by default, the one found in `data/` or `$BPFN_DATA`.",
        metavar="DIR",
    ),
]
Runs = Annotated[Path, typer.Option("--runs", readable=False, help="Folder that holds the run folders.", metavar="DIR")]
VariantName = Annotated[str | None, typer.Option("--variant", help="Named variant of the network.", metavar="NAME")]
CheckpointFile = Annotated[
    Path | None,
    typer.Option("--checkpoint", readable=False, help="Weights: written by bpfn, or a published .pth.", metavar="FILE"),
]
TeacherFile = Annotated[
    Path | None,
    typer.Option(
        "--teacher",
        readable=False,
        help="Weights of the teacher; by default, one is found among the runs or trained.",
        metavar="FILE",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**31 - 1, help="Random seed.", metavar="N")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", metavar="DEVICE")]
Points = Annotated[
    int | None, typer.Option("--points", min=1, max=10**6, help="Points drawn from each cloud.", metavar="N")
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, max=10**9, help="Passes over the training scenes.", metavar="N")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing output.", metavar="")]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.", metavar="")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.", metavar="")]
Losses = Annotated[
    list[str] | None,
    typer.Option(
        "--loss",
        help="Loss listed by `bpfn losses`, or your own as module:attribute; repeat to sum several.",
        metavar="NAME",
    ),
]
StrategyName = Annotated[
    choices.Strategy | None, typer.Option("--strategy", help="What else is trained besides the student.")
]
EarlyStopName = Annotated[
    choices.EarlyStop | None, typer.Option("--early-stop", help="When to stop learning from the teacher.")
]
CalendarName = Annotated[
    choices.ValidationCalendar | None,
    typer.Option("--validation-calendar", help="Epochs that validate; fast: every fifth in mid-training."),
]
MaxTime = Annotated[
    str | None,
    typer.Option(
        "--max-time", help="Time limit, such as 90m, 23h or 1-12:00:00; saves and stops before.", metavar="TIME"
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices", min=1, max=1024, help="Processes on this machine, one per GPU; they share each batch.", metavar="N"
    ),
]
Nodes = Annotated[
    int, typer.Option("--nodes", min=1, max=1024, help="Machines that run this command together.", metavar="N")
]
SelectOn = Annotated[
    choices.Selection | None,
    typer.Option("--select-on", help="Scenes that select the best checkpoint: held-out training scenes or test split."),
]
_precision = typer.Option("--precision", help="Bits of the large matrix products; fewer are faster and less exact.")
PrecisionName = Annotated[Precision, _precision]
TrainingPrecision = Annotated[Precision | None, _precision]
RecipeFile = Annotated[
    Path | None, typer.Option("-c", "--config", readable=False, help="Recipe (YAML).", metavar="FILE")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a recipe key, such as train.lr=1e-3; repeatable.", metavar="KEY=VALUE"),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", min=1, max=1024, help="Worker processes; by default, one per core.", metavar="N"),
]
