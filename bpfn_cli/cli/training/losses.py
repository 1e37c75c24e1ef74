# SPDX-License-Identifier: MIT
"""`bpfn losses`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, echo, print_json, say

if TYPE_CHECKING:
    from bpfn_cli.models import BiPointFlowNet, Variant

EXIT_FAILED = 1


def losses(
    names: Annotated[
        list[str] | None, typer.Argument(help="Losses or strategies to describe.", metavar="[NAME]...")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Check identities, gradients and hand-computed values on a pair of networks.", metavar=""
        ),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a training step with each loss on this machine.", metavar="")
    ] = False,
    student: Annotated[
        str,
        typer.Option("--student", help="Variant, sizes or checkpoint for --check and --measure.", metavar="NAME|FILE"),
    ] = "weightnet48",
    teacher: Annotated[
        str,
        typer.Option("--teacher", help="Variant, sizes or checkpoint for --check and --measure.", metavar="NAME|FILE"),
    ] = "baseline",
    points: Annotated[int, typer.Option("--points", min=1024, max=2**19, help="Points, for --measure.")] = 1024,
    batch: Annotated[int, typer.Option("--batch", min=1, max=1024, help="Batch size, for --measure.")] = 4,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Steps per loss, for --measure.")] = 7,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """List losses and strategies, describe some of them, or check them.

    A name may also be module:Class, for your own loss.

    \b
    Examples:
      $ bpfn losses                            # list all, with their cost
      $ bpfn losses bihint                     # formula, source and options
      $ bpfn losses --check                    # check all
      $ bpfn losses hint --check --student half --teacher t.pth    # check a loss on your networks
      $ bpfn losses --measure                  # time a step with each loss
    """
    from bpfn_cli.errors import UsageError
    from bpfn_cli.losses import LOSSES, NO_DISTILLATION, loss_named
    from bpfn_cli.strategies import STRATEGIES
    from bpfn_cli.strategies.cards import card_of, card_text

    if check and measure:
        raise UsageError("--check and --measure: give only one of them")
    chosen = [name for name in names or LOSSES if name not in (*STRATEGIES, NO_DISTILLATION)]
    for name in chosen:
        loss_named(name)
    if (check or measure) and not chosen:
        raise UsageError(f"{', '.join(names or [])}: only losses can be checked or timed; see `bpfn losses`")
    if check:
        _check(chosen, student, teacher, json)
    elif measure:
        sizes = {"points": points, "batch": batch, "rounds": rounds}
        _measure(chosen, student, teacher, sizes, device, json)
    elif names:
        cards = [card_of(name) for name in names]
        print_json(cards) if json else echo("\n\n".join(map(card_text, cards)))
    else:
        _list(json)


def _list(json: bool) -> None:
    from bpfn_cli.profiling.loss_costs import loss_list, recorded_costs

    found = loss_list()
    if json:
        print_json(found)
        return
    rows = [("none", "nothing: only the ground truth", "", "", "")]
    for loss in found["losses"]:
        extra = "-" if loss["extra_cost"] is None else f"{100 * loss['extra_cost']:+.0f} %"
        rows.append((loss["name"], loss["compares"], loss["adapters"], extra, loss["source"].partition(" [")[0]))
    _print_table(("--loss", "compares", "adapters", "extra", "source"), rows)
    console().print()
    _print_table(("--strategy", "does"), [(one["name"], one["does"]) for one in found["strategies"]])
    costs = recorded_costs()["costs"]
    say(
        "extra: time in addition to the teacher's "
        f"(+{100 * (costs['teacher']['step_ms'] / costs['none']['step_ms'] - 1):.0f} %), relative to a step from "
        f"scratch; measured on {found['cost_measured']}. On this machine: bpfn losses --measure"
    )
    say("next: bpfn losses NAME (formula, source, options), bpfn losses --check")


def _print_table(headings: tuple[str, ...], rows: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading == "extra" else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console().print(table)


def _network(named: str) -> Variant | BiPointFlowNet:
    """Sizes, or the trained network of a checkpoint."""
    from bpfn_cli.models import find_variant, load_checkpoint
    from bpfn_cli.models.sizes import is_checkpoint
    from bpfn_cli.shipped import find_weights

    return load_checkpoint(find_weights(Path(named))) if is_checkpoint(named) else find_variant(named)


def _check(names: list[str], student: str, teacher: str, json: bool) -> None:
    from bpfn_cli.strategies.loss_checks import Pair, check_losses

    found = []
    for check in check_losses(names, Pair.build(_network(student), _network(teacher))):
        found.append(check)
        if not json:
            sign = {True: "pass", False: "FAIL", None: "-"}[check.passed]
            echo(f"{sign:<5} {check.loss:<16} {check.name}: {check.detail}")
    if json:
        print_json([asdict(check) for check in found])
    passed, failed = (sum(check.passed is outcome for check in found) for outcome in (True, False))
    say(f"{passed} passed, {failed} failed, {len(found) - passed - failed} not applicable")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _measure(names: list[str], student: str, teacher: str, sizes: dict[str, int], device: str, json: bool) -> None:
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.models import Variant
    from bpfn_cli.profiling import describe_machine
    from bpfn_cli.profiling.loss_costs import measure_costs
    from bpfn_cli.strategies.loss_checks import random_batch

    keep_freed_memory()
    pair = _network(student), _network(teacher)
    own, other = (found if isinstance(found, Variant) else found.variant for found in pair)
    batch = random_batch(sizes["batch"], sizes["points"]).to(resolve_device(device))
    with ConsoleProgress().bar("timing training steps") as bar:
        costs = measure_costs(names, own, other, batch, sizes["rounds"], bar)
    if json:
        about = {"machine": describe_machine(), "student": own.name, "teacher": other.name}
        print_json({**about, **sizes, "costs": {name: asdict(cost) for name, cost in costs.items()}})
        return
    for name, cost in costs.items():
        extra = "" if name in ("none", "teacher") else f", {100 * cost.over_teacher:+.0f} % beyond the teacher's"
        echo(f"{name:<16} {cost.step_ms:8.1f} ms per step{extra}")
