# SPDX-License-Identifier: MIT
"""Cards of losses and strategies as plain values and as text."""

from collections.abc import Iterator
from dataclasses import asdict
from textwrap import fill
from typing import Any

from bpfn_cli.losses import NO_DISTILLATION, loss_named
from bpfn_cli.strategies import STRATEGIES

TITLES = ("compares", "does", "formula", "source", "adapters", "never_zero")


def card_of(name: str) -> dict[str, Any]:
    """The card of a loss or strategy, with its options. Raises: UsageError: unknown name."""
    if name == NO_DISTILLATION:
        return {"name": name, "does": "no distillation: only the supervised loss", "deviations": [], "options": []}
    kind: Any = STRATEGIES.get(name) or loss_named(name)
    fields = getattr(kind.settings, "__pydantic_fields__", {})
    options = [
        {"name": key, "default": field.get_default(call_default_factory=True), "meaning": field.description or ""}
        for key, field in fields.items()
    ]
    return {"name": name, **asdict(kind.card), "options": options}


def card_text(card: dict[str, Any]) -> str:
    """A card for people."""
    lines = [f"{title.replace('_', ' ')}: {card[title]}" for title in TITLES if card.get(title)]
    lines += [f"deviation: {deviation}" for deviation in card["deviations"]]
    lines += list(_option_lines(card["options"])) or ["no options"]
    return "\n".join(
        [card["name"], *(fill(line, 100, initial_indent="  ", subsequent_indent="    ") for line in lines)]
    )


def _option_lines(options: list[dict[str, Any]]) -> Iterator[str]:
    for option in options:
        default = option["default"]
        shown = f"[{', '.join(map(str, default))}]" if isinstance(default, tuple) else default
        yield f"option {option['name']} = {shown}: {option['meaning']}"
