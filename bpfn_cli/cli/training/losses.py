# SPDX-License-Identifier: MIT
"""`bpfn losses`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, print_json, say

if TYPE_CHECKING:
    from bpfn_cli.losses import DistillationLoss
    from bpfn_cli.models import BiPointFlowNet, Variant
    from bpfn_cli.strategies import Strategy

EXIT_FAILED = 1


def losses(
    names: Annotated[
        list[str] | None, typer.Argument(help="Losses or strategies whose cards to print.", metavar="[NAME]...")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check identities and hand values, on your own pair.", metavar="")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a training step with each, on this machine.", metavar="")
    ] = False,
    student: Annotated[
        str, typer.Option("--student", help="Variant or checkpoint, for --check and --measure.", metavar="NAME|FILE")
    ] = "weightnet48",
    teacher: Annotated[
        str, typer.Option("--teacher", help="Variant or checkpoint, for --check and --measure.", metavar="NAME|FILE")
    ] = "baseline",
    points: Annotated[int, typer.Option("--points", min=1024, max=2**19, help="Points, for --measure.")] = 1024,
    batch: Annotated[int, typer.Option("--batch", min=1, max=1024, help="Pairs of clouds, for --measure.")] = 4,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Steps of each, for --measure.")] = 7,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """List all losses and strategies, print the card of one, or check them.

    A name may be module:attribute, for a loss of your own.

    Examples: `bpfn losses`, `bpfn losses bihint`, `bpfn losses --check`,
    `bpfn losses hint --check --student half --teacher runs/teacher/student.safetensors`, `bpfn losses --measure`
    """
    from bpfn_cli.errors import UsageError
    from bpfn_cli.losses import LOSSES, NO_DISTILLATION, loss_named
    from bpfn_cli.strategies import STRATEGIES

    if check and measure:
        raise UsageError("--check and --measure: give one of them")
    chosen = {name: loss_named(name) for name in names or LOSSES if name not in (*STRATEGIES, NO_DISTILLATION)}
    if names and not chosen and (check or measure):
        raise UsageError(f"{', '.join(names)}: only losses that compare can be checked or timed; see `bpfn losses`")
    if check:
        _check(list(chosen), student, teacher, json)
    elif measure:
        _measure(list(chosen), student, teacher, points, batch, rounds, device, json)
    elif names:
        cards = [{"name": name, **_card(name, STRATEGIES.get(name) or chosen.get(name))} for name in names]
        print_json(cards) if json else print("\n\n".join("\n".join(_lines(card)) for card in cards))
    else:
        _list(json)


def _card(name: str, kind: type[DistillationLoss] | type[Strategy] | None) -> dict[str, Any]:
    from dataclasses import asdict

    if kind is None:
        return {"does": "no distillation: the supervised loss alone", "deviations": [], "options": []}
    return {**asdict(kind.card), "options": _options(kind.settings)}


def _options(settings: type) -> list[dict[str, Any]]:
    fields: dict[str, Any] = getattr(settings, "__pydantic_fields__", {})
    return [
        {"name": name, "default": field.get_default(call_default_factory=True), "meaning": field.description or ""}
        for name, field in fields.items()
    ]


def _lines(card: dict[str, Any]) -> Iterator[str]:
    from textwrap import fill

    yield card["name"]
    titles = ("compares", "does", "formula", "source", "adapters", "never_zero")
    for title in titles:
        if card.get(title):
            yield fill(f"{title.replace('_', ' ')}: {card[title]}", 100, initial_indent="  ", subsequent_indent="    ")
    for deviation in card["deviations"]:
        yield fill(f"deviation: {deviation}", 100, initial_indent="  ", subsequent_indent="    ")
    for option in card["options"]:
        text = f"option {option['name']} = {_plain(option['default'])}: {option['meaning']}"
        yield fill(text, 100, initial_indent="  ", subsequent_indent="    ")
    if not card["options"]:
        yield "  no options"


def _plain(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _list(json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from bpfn_cli.losses import LOSSES
    from bpfn_cli.profiling.loss_costs import recorded_costs
    from bpfn_cli.strategies import STRATEGIES

    record = recorded_costs()
    costs = record["costs"]
    if json:
        rows = [
            {
                "name": name,
                "kind": kind.kind,
                "compares": kind.card.compares,
                "adapters": kind.card.adapters,
                "extra_cost": costs.get(name, {}).get("over_teacher"),
                "source": kind.card.source,
            }
            for name, kind in LOSSES.items()
        ]
        others = [{"name": name, "does": kind.card.does} for name, kind in STRATEGIES.items()]
        print_json({"losses": rows, "strategies": others, "cost_measured": record["measured"]})
        return
    drawn = Table(box=None, pad_edge=False)
    for heading in ("--loss", "compares", "adapters", "extra", "source"):
        drawn.add_column(heading, justify="right" if heading == "extra" else "left")
    drawn.add_row("none", "nothing: ground truth alone", "", "", "")
    for name, kind in LOSSES.items():
        extra = costs.get(name, {}).get("over_teacher")
        cells = (name, kind.card.compares, kind.card.adapters, "-" if extra is None else f"{100 * extra:+.0f} %")
        drawn.add_row(*map(Text, (*cells, kind.card.source.partition(" [")[0])))
    console().print(drawn)
    strategies = Table(box=None, pad_edge=False)
    for heading in ("--strategy", "does"):
        strategies.add_column(heading)
    for name, strategy in STRATEGIES.items():
        strategies.add_row(Text(name), Text(strategy.card.does))
    console().print()
    console().print(strategies)
    teacher = costs["teacher"]["step_ms"] / costs["none"]["step_ms"] - 1
    say(
        f"extra: time beyond the teacher's own (+{100 * teacher:.0f} %), of a step from scratch; measured on "
        f"{record['measured']}. Yours: bpfn losses --measure"
    )
    say("next: bpfn losses NAME (formula, source, options), bpfn losses --check")


def _network(named: str) -> Variant | BiPointFlowNet:
    from bpfn_cli.models import VARIANTS, load_checkpoint, variant_named

    is_file = named not in VARIANTS and (Path(named).exists() or "/" in named or Path(named).suffix != "")
    return load_checkpoint(Path(named)) if is_file else variant_named(named)


def _variant(named: str) -> Variant:
    from bpfn_cli.models import Variant

    found = _network(named)
    return found if isinstance(found, Variant) else found.variant


def _check(names: list[str], student: str, teacher: str, json: bool) -> None:
    from dataclasses import asdict

    from bpfn_cli.strategies.loss_checks import Pair, check_losses

    found = []
    pair = Pair.of(_network(student), _network(teacher))
    for one in check_losses(names, pair):
        found.append(one)
        if not json:
            sign = {True: "pass", False: "FAIL", None: "-"}[one.passed]
            print(f"{sign:<5} {one.loss:<16} {one.name}: {one.detail}", flush=True)
    failed = [one for one in found if one.passed is False]
    if json:
        print_json([asdict(one) for one in found])
    passed = sum(one.passed is True for one in found)
    say(f"{passed} passed, {len(failed)} failed, {len(found) - passed - len(failed)} do not apply")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _measure(
    names: list[str], student: str, teacher: str, points: int, batch: int, rounds: int, device: str, json: bool
) -> None:
    from dataclasses import asdict

    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.profiling import describe_machine
    from bpfn_cli.profiling.loss_costs import measure_costs

    keep_freed_memory()
    own, other = _variant(student), _variant(teacher)
    with ConsoleProgress().bar("timing training steps") as bar:
        costs = measure_costs(
            names,
            own,
            other,
            points=points,
            batch_size=batch,
            rounds=rounds,
            device=resolve_device(device),
            progress=bar,
        )
    if json:
        print_json(
            {
                "machine": describe_machine(),
                "student": own.name,
                "teacher": other.name,
                "points": points,
                "batch": batch,
                "rounds": rounds,
                "costs": {name: asdict(cost) for name, cost in costs.items()},
            }
        )
        return
    for name, cost in costs.items():
        extra = "" if name in ("none", "teacher") else f", {100 * cost.over_teacher:+.0f} % beyond the teacher's"
        print(f"{name:<16} {cost.step_ms:8.1f} ms a step{extra}")
