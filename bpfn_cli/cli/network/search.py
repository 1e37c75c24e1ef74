# SPDX-License-Identifier: MIT
"""`bpfn search`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, finish, print_json, say
from bpfn_cli.cli.network.prune import BATCH, MEASURED, PruneScenes, Scenes

if TYPE_CHECKING:
    from bpfn_cli.models.pruning.prune import Pruner
    from bpfn_cli.models.pruning.search import Candidate
    from bpfn_cli.runs.searches import SearchState

NAMED = ("weightnet8", "weightnet4", "weightnet48")  # of the teacher's kind, so they can be sliced without training


@dataclass(frozen=True, kw_only=True)
class SearchFlags(PruneScenes):
    """What `bpfn search` takes."""

    teacher: Annotated[Path, options.weights("--teacher", help="Network to cut.")] = Path("baseline")
    budgets: Annotated[int, Option(min=2, max=1000, help="Budgets of MACs.", metavar="N")] = 8
    tries: Annotated[int, Option(min=1, max=1000, help="Networks for each budget.", metavar="N")] = 4
    keep: Annotated[int, Option(min=0, max=100, help="Networks of the front to train and write.", metavar="N")] = 4
    out: options.Out = None
    plot: Annotated[bool, options.switch("--plot", "Draw error against MACs (PNG; needs matplotlib).")] = False
    json: options.Json = False
