# SPDX-License-Identifier: MIT
"""Flags that several commands share, spelled once."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from bpfn_cli import choices
from bpfn_cli.files import expanded
from bpfn_cli.precision import Precision

Flags = TypeVar("Flags")


def takes(kind: type[Flags]) -> Callable[[Callable[[Flags], None]], Callable[..., None]]:
    """Make a command of a function of one dataclass: the fields of `kind` become the parameters that Typer reads."""
    hints = get_type_hints(kind, include_extras=True)
    parameters = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if one.default is MISSING else one.default,
            annotation=hints[one.name],
        )
        for one in fields(kind)  # type: ignore[arg-type]
    ]

    def decorate(function: Callable[[Flags], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**values: Any) -> None:
            function(kind(**values))

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def given_path(text: str) -> Path:
    """A path as it is typed. Raises: BadParameter: it is empty. UsageError: as `expanded`."""
    if not str(text).strip():  # such as "$SCANS" of a shell in which it is not set; as a path, it is the current folder
        raise typer.BadParameter("the path is empty; write . for the current folder")
    return expanded(text)


def path(*names: str, help: str, metavar: str, callback: Callable[[Path | None], Path | None] | None = None) -> Any:
    """An option that is a path, which need not exist. `~` and `$NAME` are replaced."""
    return typer.Option(*names, parser=given_path, help=help, metavar=metavar, callback=callback)


def path_argument(*, help: str, metavar: str) -> Any:
    """As `path`, without a flag."""
    return typer.Argument(parser=given_path, help=help, metavar=metavar)


def weights(*names: str, help: str) -> Any:
    """An option that is a file of weights, a run folder, or the name of a network that comes with bpfn."""
    return path(*names, help=help, metavar="FILE|RUN|NAME", callback=_find_weights)


def out(what: str) -> Any:
    """Where a command writes. what: is written, and its default place."""
    return path("--out", help=f"Where to write {what}.", metavar="PATH")


def _find_weights(given: Path | None) -> Path | None:
    from bpfn_cli.shipped import find_weights

    return given if given is None or str(given) == TRAIN else find_weights(given)


def _number(name: str, help: str, largest: int, smallest: int = 1) -> Any:
    return typer.Option(name, min=smallest, max=largest, help=help, metavar="N")


def switch(name: str, help: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help, metavar="")


VARIANT = "Named variant, or sizes from a checkpoint or YAML file"
TRAIN = "train"  # in place of a teacher: train one
OWN_LOSS = "Loss listed by `bpfn losses`, or your own as module:Class; repeat to sum several."
TIME_LIMIT = "Time limit, such as 90m, 23h or 1-12:00:00; saves and stops in time."
PRECISION = typer.Option("--precision", help="Precision of the large matrix products; lower is faster and less exact.")

Source = Annotated[Path | None, path("--source", help="Folder to read.", metavar="DIR")]
Data = Annotated[
    Path | None, path("--data", help="Dataset or subset; default: in `data/` or `$BPFN_DATA`.", metavar="DIR")
]
Runs = Annotated[Path, path("--runs", help="Folder that holds the run folders.", metavar="DIR")]
RecipeFile = Annotated[Path | None, path("-c", "--config", help="Recipe (YAML).", metavar="FILE")]
CheckpointFile = Annotated[
    Path | None, weights("--checkpoint", help="Weights, a run folder, a .pth file, or a name from `bpfn weights`.")
]
InitialFile = Annotated[
    Path | None, path("--checkpoint", help="Initial weights, copied or sliced.", metavar="FILE|RUN|NAME")
]
TeacherFile = Annotated[
    Path | None,
    weights(
        "--teacher",
        help="Weights of the teacher, or `train` to train it first; default: the one of `bpfn weights` with the "
        "recipe's teacher variant.",
    ),
]
Seed = Annotated[int, _number("--seed", "Random seed.", 2**31 - 1, smallest=0)]
RecipeSeed = Annotated[int | None, _number("--seed", "Random seed.", 2**31 - 1, smallest=0)]
EvaluatedPoints = Annotated[
    int | None,
    _number("--points", "Points drawn from each cloud; default: as many as the network was trained for.", 10**6),
]
SeenPoints = Annotated[
    int | None,
    _number("--points", "Points of each cloud that the network sees at a time; default: as in its training.", 10**6),
]
ProfiledPoints = Annotated[
    int | None, _number("--points", "Points of each cloud that MACs are counted for; default: 8192.", 10**6)
]
BudgetPoints = Annotated[
    int | None, _number("--points", "Points per cloud for counting MACs and measuring latency.", 10**6)
]
TrainingPoints = Annotated[int | None, _number("--points", "Points drawn from each cloud.", 10**6, smallest=1024)]
Epochs = Annotated[int | None, _number("--epochs", "Passes over the training scenes.", 10**9)]
Devices = Annotated[
    int | None, _number("--devices", "Processes on this machine, one per GPU; they share each batch.", 1024)
]
Nodes = Annotated[int, _number("--nodes", "Machines that run this command together.", 1024)]
Processes = Annotated[int | None, _number("--processes", "Worker processes; default: one per core.", 1024)]
CloudFrame = Annotated[
    str | None,
    typer.Option(
        "--frame",
        help="For your own clouds without labels: their axes, as in `bpfn predict --frame`, or where x, y and z point, "
        "such as right,forward,up.",
        metavar="FRAME",
    ),
]
RemoveGround = Annotated[bool, switch("--remove-ground", "Leave out the ground plane of your own clouds.")]
Force = Annotated[bool, switch("--force", "Overwrite existing output.")]
Json = Annotated[bool, switch("--json", "Print only JSON on stdout.")]
DryRun = Annotated[bool, switch("--dry-run", "Print the plan and write nothing.")]
AllowCode = Annotated[bool, switch("--allow-code", "Import losses of your own that a recipe, study or run names.")]
Resume = Annotated[bool, switch("--resume", "Resume the run of this --name if it exists.")]
VariantName = Annotated[str | None, typer.Option("--variant", help=f"{VARIANT}.", metavar="NAME|FILE")]
RunName = Annotated[str | None, typer.Option("--name", help="Name of the run folder.", metavar="NAME")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", metavar="DEVICE")]
MaxTime = Annotated[str | None, typer.Option("--max-time", help=TIME_LIMIT, metavar="TIME")]
Losses = Annotated[list[str] | None, typer.Option("--loss", help=OWN_LOSS, metavar="NAME")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Set a key of the recipe; repeatable.", metavar="KEY=VALUE")
]
StrategyName = Annotated[choices.Strategy | None, typer.Option(help="What is trained besides the student.")]
EarlyStopName = Annotated[choices.EarlyStop | None, typer.Option(help="When to stop learning from the teacher.")]
CalendarName = Annotated[
    choices.ValidationCalendar | None,
    typer.Option(help="Epochs that are validated; fast: every fifth in mid-training."),
]
SelectOn = Annotated[choices.Selection | None, typer.Option(help="Scenes that select the best checkpoint.")]
Quantize = Annotated[
    choices.Quantize | None,
    typer.Option(help="Train with the rounded weights and activations of int8 inference."),
]
PrecisionName = Annotated[Precision, PRECISION]
TrainingPrecision = Annotated[Precision | None, PRECISION]
