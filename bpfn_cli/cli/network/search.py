# SPDX-License-Identifier: MIT
"""`bpfn search`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from bpfn_cli import choices
from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, finish, print_json, say
from bpfn_cli.cli.network.prune import SCENES, SCENES_HELP, distill_command
from bpfn_cli.cli.places import default_dataset

if TYPE_CHECKING:
    from bpfn_cli.runs.searches import SearchState

POINTS_COUNTED = Option(
    min=1, max=10**6, help=f"Points of the pair whose MACs are counted; default: {PUBLISHED_POINTS}.", metavar="N"
)
FOLDER, PLOT = Path("search"), "search"


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    """What `bpfn search` takes."""

    teacher: Annotated[Path, options.weights("--teacher", help="Network to cut.")] = Path("baseline")
    out: Annotated[Path, options.path("--out", help="Folder of the search.", metavar="DIR")] = FOLDER
    data: options.Data = None
    budgets: Annotated[int, Option(min=2, max=1000, help="Budgets of MACs.", metavar="N")] = 8
    tries: Annotated[int, Option(min=1, max=1000, help="Networks that are measured per budget.", metavar="N")] = 4
    keep: Annotated[
        int, Option(min=1, max=100, help="Networks of the Pareto front to train and save.", metavar="N")
    ] = 4
    recover: Annotated[int, Option(min=0, max=10**6, help="Training steps of each.", metavar="N")] = 100
    scenes: Annotated[int, Option(min=4, max=10**6, help=SCENES_HELP, metavar="N")] = SCENES
    importance: Annotated[choices.Importance, Option(help="What ranks the channels of --teacher.")] = "taylor"
    points: Annotated[int | None, POINTS_COUNTED] = None
    seed: options.Seed = 0
    latency: Annotated[bool, options.switch("--latency", "Also measure the time of a pass of each.")] = False
    plot: Annotated[bool, options.switch("--plot", f"Draw EPE3D against cost, as {PLOT}.png and {PLOT}.svg.")] = False
    json: options.Json = False


@options.takes(SearchFlags)
def search(flags: SearchFlags) -> None:
    """Find the best small networks that can be cut from a teacher, at many budgets.

    Channels are ranked and sizes measured as in `bpfn slim --target-macs`. For each budget of MACs, --tries networks
    are cut and measured without training. The best of them, at least one for the MACs of each named variant, are
    trained for a short while, as are the named variants, cut from the same teacher. Each network found is written as a
    checkpoint. If the search is stopped, repeat the command to resume it.

    \b
    Examples:
      $ bpfn search --teacher baseline --out search         # takes about an hour; repeat to resume
      $ bpfn search --budgets 4 --tries 2 --recover 20      # a quick look
      $ bpfn search --latency --plot                        # also the time of a pass, and a picture
    """
    from bpfn_cli.figures.style import write_figure
    from bpfn_cli.files import made_folder
    from bpfn_cli.locks import only_writer
    from bpfn_cli.reporting.search import search_figure, search_table
    from bpfn_cli.reporting.terminal import print_table

    if flags.plot:
        from bpfn_cli.viewing.libraries import need_viz

        need_viz("matplotlib")  # before the work
    with made_folder(flags.out), only_writer(flags.out):
        try:
            state = _searched(flags)
        except KeyboardInterrupt:
            say("stopped: repeat the command to resume")
            raise
    if flags.plot:
        write_figure(search_figure(state), flags.out, PLOT)
    if flags.json:
        print_json(state.results())
    else:
        print_table(search_table(state), console())
    kept = [flags.out / one.file for one in state.networks if one.file]
    for path in kept:
        say(f"distill: {shlex.join(map(str, distill_command(path, flags.teacher, flags.data)))}")
    finish(flags.out)


def _searched(flags: SearchFlags) -> SearchState:
    """The finished search of the folder."""
    import torch

    import bpfn_cli
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.files import sha256_of
    from bpfn_cli.models import build_from, read_checkpoint
    from bpfn_cli.models.pruning.prune import Pruner, count_of
    from bpfn_cli.profiling.pruning import latency_ms, pruning_scenes
    from bpfn_cli.runs.searches import Definition, open_state
    from bpfn_cli.shipped import history_of
    from bpfn_cli.studies.search import Search

    keep_freed_memory()
    progress, points, seed = ConsoleProgress(), flags.points or PUBLISHED_POINTS, flags.seed
    read, sha256 = read_checkpoint(flags.teacher), sha256_of(flags.teacher)
    teacher = build_from(read)
    scenes, dataset = pruning_scenes(flags.data or default_dataset(), teacher, flags.scenes, seed, progress)
    definition = Definition(
        bpfn=bpfn_cli.__version__,
        teacher_sha256=sha256,
        data_sha256=dataset.identity(),
        used=count_of(scenes.used),
        held_out=count_of(scenes.held_out),
        scene_points=scenes.points,
        points=points,
        seed=seed,
        importance=flags.importance,
        budgets=flags.budgets,
        tries=flags.tries,
        keep=flags.keep,
        recovery_steps=flags.recover,
        latency=flags.latency,
    )
    state = open_state(flags.out, definition)
    if state.candidates and not state.is_finished:
        say(f"resuming: {len(state.candidates)} networks measured, {len(state.networks)} trained")
    torch.manual_seed(seed)
    timed = (lambda variant: latency_ms(variant, points)) if flags.latency else None
    before = history_of(read.metadata, sha256)
    return Search(flags.out, state, Pruner(teacher), scenes, timed, progress, before).run()
