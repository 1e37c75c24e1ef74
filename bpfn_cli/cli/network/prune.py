# SPDX-License-Identifier: MIT
"""`bpfn slim` with a budget: prune a teacher."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from bpfn_cli import choices
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, say
from bpfn_cli.cli.places import default_dataset

if TYPE_CHECKING:
    from bpfn_cli.models import BiPointFlowNet, Variant
    from bpfn_cli.models.pruning.prune import Pruner
    from bpfn_cli.structures import FlowBatch

BUDGETS = ("target_macs", "target_params", "target_latency")
UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
MOST_POINTS = 2048  # of each cloud, for everything that is measured on scenes
BATCH = 4
HELD_OUT = 32  # scenes that errors are measured on
MEASURED = 16  # scenes that each size is cut on
PRUNED = "pruned"  # the name of a network without another
PASSES = 9  # of the network whose latency is measured


@dataclass(frozen=True, kw_only=True)
class PruneFlags:
    """What `bpfn slim` takes to prune."""

    teacher: Annotated[
        Path | None, options.weights("--teacher", help="Weights to slice or prune; without it they are fresh.")
    ] = None
    target_macs: Annotated[str | None, Option(help="Prune --teacher to this many MACs.", metavar="NUMBER")] = None
    target_params: Annotated[str | None, Option(help="Prune --teacher to this many parameters.", metavar="NUMBER")] = (
        None
    )
    target_latency: Annotated[str | None, Option(help="Prune --teacher to this time per pair.", metavar="MS")] = None
    importance: Annotated[
        choices.Importance | None, Option(help="What ranks the channels of --teacher; default for a budget: taylor.")
    ] = None
    scenes: Annotated[int, Option(min=4, max=10**6, help="Scenes to prune with.", metavar="N")] = 128
    recover: Annotated[int, Option(min=0, max=10**6, help="Training steps after pruning.", metavar="N")] = 100
    data: options.Data = None
    out: options.Out = None
    points: options.Points = None
    seed: options.Seed = 0

    @property
    def budgets(self) -> list[str]:
        """The flags of budgets that are given."""
        return [name for name in BUDGETS if getattr(self, name) is not None]

    @property
    def prunes(self) -> bool:
        """Whether channels are chosen, rather than the first ones kept."""
        return bool(self.budgets) or self.importance is not None


@dataclass(frozen=True)
class Scenes:
    """Batches that importance and recovery use, and others that errors are measured on."""

    used: list[FlowBatch]
    held_out: list[FlowBatch]


@dataclass(frozen=True)
class PrunedErrors:
    """EPE3D on the held-out scenes, metres: of the teacher, of the cut network, and after the recovery."""

    scenes: int
    teacher_m: float
    cut_m: float
    recovered_m: float | None


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


def pruned(flags: PruneFlags, teacher: BiPointFlowNet, sizes: Variant | None) -> tuple[BiPointFlowNet, dict[str, Any]]:
    """A network of these sizes, or within the budget, and what the checkpoint and `--json` say about it."""
    from bpfn_cli.models.pruning.prune import Pruner, mean_epe3d, recover

    fit = _fitting(flags, teacher.variant) if sizes is None else None
    progress, scenes, importance = ConsoleProgress(), _scenes(flags, teacher), flags.importance or "taylor"
    pruner = Pruner(teacher)
    with progress.bar("importance of channels") as bar:
        pruner.order(importance, scenes.used, bar)
    if fit is not None:
        with progress.bar("sensitivity of sizes") as bar:
            pruner.measure(scenes.used[: MEASURED // BATCH], bar)
        sizes = replace(fit(pruner), name=_name(flags))
    assert sizes is not None
    model = pruner.cut(sizes)
    cut, recovered = mean_epe3d(model, scenes.held_out), None
    if flags.recover:
        with progress.bar("recovery", samples=BATCH) as bar:
            recover(model, teacher, scenes.used, flags.recover, bar)
        recovered = mean_epe3d(model, scenes.held_out)
    count = sum(len(batch.names) for batch in scenes.held_out)
    errors = PrunedErrors(count, mean_epe3d(teacher, scenes.held_out), cut, recovered)
    return model, {"importance": importance, "recovery_steps": flags.recover, "epe3d": asdict(errors)}


def _scenes(flags: PruneFlags, teacher: BiPointFlowNet) -> Scenes:
    """Batches of training scenes: `--scenes` of them to learn from, and others to measure on."""
    from bpfn_cli.data.datasets import describe, open_dataset
    from bpfn_cli.data.loader import evaluation_batches
    from bpfn_cli.errors import UsageError

    points = min(MOST_POINTS, teacher.num_points)
    dataset = open_dataset(flags.data or default_dataset(), "train")
    held_out = min(HELD_OUT, len(dataset) // 3)
    used = min(flags.scenes, len(dataset) - held_out)
    if not held_out:
        raise UsageError(f"--data: {describe(dataset)} are too few to prune with; use a dataset of at least 3")
    say(f"data: {describe(dataset)}; {used} scenes to learn from, {held_out} to measure on, {points:,} points each")
    how: dict[str, Any] = {"points": points, "batch_size": BATCH, "seed": flags.seed or 0}
    first, last = range(used), range(len(dataset) - held_out, len(dataset))
    return Scenes(*(list(evaluation_batches(dataset, part, **how)) for part in (first, last)))


def _fitting(flags: PruneFlags, teacher: Variant) -> Callable[[Pruner], Variant]:
    """What chooses sizes within the budget. Raises: UsageError: no sizes can meet it."""
    from bpfn_cli.models.cost import cost_of
    from bpfn_cli.models.pruning.budget import check_budget

    points = flags.points or 8192
    if flags.target_latency is not None:
        target = quantity("--target-latency", flags.target_latency, "ms")
        return lambda pruner: pruner.fit_latency(
            lambda variant: _latency_ms(variant, points), target, lambda variant: cost_of(variant, points).macs
        )
    flag, field = ("--target-macs", "macs") if flags.target_macs is not None else ("--target-params", "parameters")
    target = quantity(flag, flags.target_macs or flags.target_params or "")

    def cost(variant: Variant) -> float:
        value: int = getattr(cost_of(variant, points), field)
        return value

    check_budget(teacher, cost, target)
    return lambda pruner: pruner.fit(cost, target)


def _name(flags: PruneFlags) -> str:
    """Of the pruned network: that of its file, unless a variant of other sizes has it."""
    from bpfn_cli.models.variants import VARIANTS, file_name

    name = file_name(flags.out) if flags.out else PRUNED
    return PRUNED if name in VARIANTS else name


def _latency_ms(variant: Variant, points: int) -> float:
    """Median time of a pass with one pair of clouds, as `bpfn bench` measures it."""
    from bpfn_cli.profiling import Case, measure_latency

    return measure_latency(Case(variant, points), rounds=PASSES, plain=False, memory=False).fast.median_ms


def print_pruned(model: BiPointFlowNet, teacher: BiPointFlowNet, report: dict[str, Any], points: int) -> None:
    """Tables of cost and error before and after, and of the sizes of the pruned network."""
    from bpfn_cli.cli.network.tables import print_table
    from bpfn_cli.models.cost import cost_of

    errors, steps = PrunedErrors(**report["epe3d"]), report["recovery_steps"]
    rows = [("teacher", teacher, errors.teacher_m), ("cut", model, errors.cut_m)]
    rows += [(f"after {steps} steps", model, errors.recovered_m)] if errors.recovered_m is not None else []
    costs = [(name, cost_of(network.variant, points), error) for name, network, error in rows]
    cells = [(name, f"{cost.parameters:,}", f"{cost.macs / 1e9:.2f}", f"{error:.3f}") for name, cost, error in costs]
    headings = ("", "Parameters", f"MACs \\[G], {points:,} points", "EPE3D \\[m]")
    print_table(f"Pruned by {report['importance']}; EPE3D on {errors.scenes} other scenes", headings, cells)
    print_table("Sizes (of the teacher)", ("", *(f"level {level}" for level in range(5))), _size_rows(model, teacher))


def _size_rows(model: BiPointFlowNet, teacher: BiPointFlowNet) -> list[list[str]]:
    from bpfn_cli.models.pruning.sizes import sizes_of

    cells: dict[str, list[str]] = {}
    for size in sizes_of(teacher.variant):
        row = cells.setdefault(size.field.replace("_", " "), ["-"] * 5)
        row[size.level or 0] = f"{size.of(model.variant)} ({size.most})"
    return [[name, *row] for name, row in cells.items()]
