# SPDX-License-Identifier: MIT
"""`bpfn slim` with a budget: prune a teacher."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from bpfn_cli import choices
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress
from bpfn_cli.cli.places import default_dataset

if TYPE_CHECKING:
    from bpfn_cli.history import Step
    from bpfn_cli.models import BiPointFlowNet, Variant
    from bpfn_cli.models.pruning.prune import ErrorAboveLimit, Goal

BUDGETS = ("target_macs", "target_params", "target_latency")
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
SCENES, STEPS = 128, 100  # to prune with, and of the training that follows
SCENES_HELP = f"Training scenes to prune and train with, by default {SCENES}; up to 32 others measure the result."


@dataclass(frozen=True, kw_only=True)
class PruneFlags:
    """What `bpfn slim` takes to prune."""

    teacher: Annotated[
        Path | None, options.weights("--teacher", help="Network to slice or prune; default: none, random weights.")
    ] = None
    target_macs: Annotated[str | None, Option(help="Prune --teacher to this many MACs.", metavar="NUMBER")] = None
    target_params: Annotated[str | None, Option(help="Prune --teacher to this many parameters.", metavar="NUMBER")] = (
        None
    )
    target_latency: Annotated[
        str | None, Option(help="Prune --teacher to this time per pair on the CPU.", metavar="MS")
    ] = None
    keep_within: Annotated[
        str | None,
        Option(help="Allow this much more error than --teacher; alone: as small as that allows.", metavar="SHARE"),
    ] = None
    importance: Annotated[
        choices.Importance | None, Option(help="What ranks the channels of --teacher; default for a budget: taylor.")
    ] = None
    scenes: Annotated[int | None, Option(min=4, max=10**6, help=SCENES_HELP, metavar="N")] = None
    recover: Annotated[
        int | None, Option(min=0, max=10**6, help=f"Training steps after pruning; default: {STEPS}.", metavar="N")
    ] = None
    data: options.Data = None
    out: Annotated[
        Path | None, options.out("the network; default: VARIANT.safetensors, or pruned.safetensors for a budget")
    ] = None
    points: options.BudgetPoints = None
    seed: options.Seed = 0

    @property
    def steps(self) -> int:
        """Of the training after pruning."""
        return STEPS if self.recover is None else self.recover

    @property
    def pair_points(self) -> int:
        """Of each cloud of the pair that a budget is about."""
        return self.points or choices.PUBLISHED_POINTS

    @property
    def budgets(self) -> list[str]:
        """The flags of budgets that are given."""
        return [name for name in BUDGETS if getattr(self, name) is not None]

    @property
    def prunes(self) -> bool:
        """Whether channels are chosen, rather than the first ones kept."""
        return self.fits or self.importance is not None

    @property
    def fits(self) -> bool:
        """Whether sizes are chosen by measuring."""
        return bool(self.budgets) or self.keep_within is not None


def distill_command(network: Path, teacher: Path, data: Path | None) -> list[object]:
    """The words that train a pruned network. data: as given to prune it."""
    from bpfn_cli.shipped import given_name

    words: list[object] = ["bpfn", "distill", "--checkpoint", network, "--teacher", given_name(teacher)]
    return [*words, "--data", data] if data is not None else words


def quantity(flag: str, text: str, unit: str = "") -> float:
    """A number such as 5G, 1.5M or, with a unit, 60ms. Raises: UsageError."""
    from bpfn_cli.errors import UsageError

    suffix = rf"(?:{unit})?()" if unit else f"({'|'.join(UNITS)})"
    found = re.fullmatch(rf"(\d+(?:\.\d*)?|\.\d+)\s*{suffix}", text.strip())
    value = float(found[1]) * UNITS[found[2]] if found else 0.0
    if value <= 0:
        example = f"60{unit}" if unit else "5G or 1.5M"
        raise UsageError(f"{flag} {text}: use a number above 0, such as {example}")
    return value


def share(flag: str, text: str) -> float:
    """A share such as 10% or 0.1. Raises: UsageError."""
    from bpfn_cli.errors import UsageError

    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else math.inf
    if value > (10 if found and found[2] else 0.999):
        raise UsageError(f"{flag} {text or '(empty)'}: use a share of the teacher's error, such as 10% or 0.1")
    return value


def pruned(
    flags: PruneFlags,
    teacher: BiPointFlowNet,
    sizes: Variant | None,
    before: tuple[Step, ...] = (),
    sha256: str | None = None,
) -> tuple[BiPointFlowNet, dict[str, Any]]:
    """A network of these sizes, or within the budget or the error, and what the checkpoint and `--json` say about it.

    before: steps that made the teacher, whose file has this `sha256`.
    """
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.errors import UsageError
    from bpfn_cli.models.pruning.prune import ErrorAboveLimit, Pruner
    from bpfn_cli.profiling.pruning import pruning_scenes

    keep_freed_memory()  # as `bpfn bench`, whose times a budget is about
    goal = _goal(flags, teacher.variant, sizes)
    progress, importance = ConsoleProgress(), flags.importance or "taylor"
    data, count = flags.data or default_dataset(), flags.scenes or SCENES
    scenes, _ = pruning_scenes(data, teacher, count, flags.seed, progress)
    pruner = Pruner(teacher, _name(flags))
    try:
        made, limit = pruner.reach(goal, scenes, importance, flags.steps, progress)
    except ErrorAboveLimit as error:
        raise UsageError(f"--keep-within: {_problem(flags, error)}") from None
    report = pruner.report(importance, made, scenes, flags.pair_points, before=before, sha256=sha256, limit=limit)
    return made.model, report.as_dict()


def _problem(flags: PruneFlags, error: ErrorAboveLimit) -> str:
    """What the error is, and the nearest budget that keeps the limit, as a user gives it."""
    from bpfn_cli.profiling.pruning import latency_ms

    if error.nearest is None:
        advice = "allow more, or raise --recover or --scenes"
        return f"no smaller network was found with an error within {error.limit}; {advice}"
    if flags.target_latency is not None:
        nearest = f"--target-latency {latency_ms(error.nearest, flags.pair_points):.3g}ms"
    else:
        flag = "--target-macs" if flags.target_macs is not None else "--target-params"
        nearest = f"{flag} {rounded_up(_cost(flags)(error.nearest))}"
    problem = f"the EPE3D within this budget is {error.made_m:.4f} m, above {error.limit}"
    return f"{problem}; the nearest budget that keeps it is {nearest}"


def rounded_up(value: float) -> str:
    """A cost with three digits, such as 4.13G, that is not below it."""
    unit, factor = next((unit, factor) for unit, factor in reversed(UNITS.items()) if value >= factor or not unit)
    step = 10.0 ** (math.floor(math.log10(value / factor)) - 2)
    return f"{math.ceil(value / factor / step - 1e-9) * step:.4g}{unit}"


def _cost(flags: PruneFlags) -> Callable[[Variant], float]:
    """What a budget counts: parameters for --target-params, else MACs."""
    from bpfn_cli.models.pruning.budget import cost_function

    return cost_function("macs" if flags.target_params is None else "parameters", flags.pair_points)


def _goal(flags: PruneFlags, teacher: Variant, sizes: Variant | None) -> Goal:
    """These sizes, or what the flags ask for. Raises: UsageError: no sizes can meet the budget."""
    from bpfn_cli.models.pruning.budget import check_budget
    from bpfn_cli.models.pruning.prune import Goal
    from bpfn_cli.profiling.pruning import latency_ms

    cost, points = _cost(flags), flags.pair_points
    if sizes is not None:
        return Goal(cost, lambda _: sizes, measures_sizes=False)
    keep = None if flags.keep_within is None else share("--keep-within", flags.keep_within)
    if not flags.budgets:
        return Goal(cost, keep_within=keep)
    if flags.target_latency is not None:
        wanted = quantity("--target-latency", flags.target_latency, "ms")
        return Goal(cost, lambda pruner: pruner.fit_latency(lambda one: latency_ms(one, points), wanted, cost), keep)
    flag = "--target-macs" if flags.target_macs is not None else "--target-params"
    target = quantity(flag, flags.target_macs or flags.target_params or "")
    check_budget(teacher, cost, target, flag)
    return Goal(cost, lambda pruner: pruner.fit(cost, target), keep)


def _name(flags: PruneFlags) -> str:
    """Of the pruned network: that of its file, unless a variant of other sizes has it."""
    from bpfn_cli.history import PRUNED
    from bpfn_cli.models.variants import VARIANTS, file_name

    name = file_name(flags.out) if flags.out else PRUNED
    return PRUNED if name in VARIANTS else name


def print_pruned(model: BiPointFlowNet, teacher: Variant, report: dict[str, Any], points: int) -> None:
    """Tables of cost and error before and after, and of the sizes of the pruned network."""
    from bpfn_cli.cli.network.tables import print_table
    from bpfn_cli.models.cost import cost_of
    from bpfn_cli.models.pruning.prune import PrunedErrors

    errors, steps = PrunedErrors(**report["epe3d"]), report["recovery_steps"]
    rows = [("teacher", teacher, errors.teacher_m), ("cut", model.variant, errors.cut_m)]
    rows += [(f"after {steps} steps", model.variant, errors.recovered_m)] if errors.recovered_m is not None else []
    costs = [(name, cost_of(variant, points), error) for name, variant, error in rows]
    cells = [(name, f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}", f"{error:.3f}") for name, cost, error in costs]
    headings = ("", "Parameters", f"MACs \\[G], {points:,} points", "EPE3D \\[m]")
    print_table(f"Pruned by {report['importance']}; EPE3D on {errors.scenes} other scenes", headings, cells)
    print_table(
        "Sizes (of the teacher)", ("", *(f"level {level}" for level in range(5))), _size_rows(model.variant, teacher)
    )


def _size_rows(variant: Variant, teacher: Variant) -> list[list[str]]:
    from bpfn_cli.models.pruning.sizes import sizes_of

    cells: dict[str, list[str]] = {}
    for size in sizes_of(teacher):
        row = cells.setdefault(size.field.replace("_", " "), ["-"] * 5)
        row[size.level or 0] = f"{size.of(variant)} ({size.most})"
    return [[name, *row] for name, row in cells.items()]
