# SPDX-License-Identifier: MIT
"""Groups of commands, whose help is plain text: rich markup would triple the time that `bpfn --help` takes."""

from typing import Any

import typer
from typer.core import TyperGroup


class PanelGroup(TyperGroup):
    """A group whose help lists its commands by panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        limit = formatter.width - 6 - max(map(len, self.commands))
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            rows = panels.setdefault(panel if isinstance(panel, str) else "Commands", [])
            rows.append((name, command.get_short_help_str(limit)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def command_group(help: str, **options: Any) -> typer.Typer:
    """An empty group of commands. help: as in a command's docstring, with an examples block after a line of \\b."""
    return typer.Typer(
        cls=PanelGroup,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help=help,
        **options,
    )
