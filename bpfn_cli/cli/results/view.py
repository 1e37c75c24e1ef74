# SPDX-License-Identifier: MIT
"""`bpfn view`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bpfn_cli.choices import Frame
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, echo, finish, say
from bpfn_cli.cli.results.predict import AXES, COLUMNS, FRAME
from bpfn_cli.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from bpfn_cli.data.clouds.pairs import Pair
    from bpfn_cli.models.predict import FlowPredictor
    from bpfn_cli.viewing.scene import Scene

FIRST = options.path_argument(
    help="First cloud, or an .npz with both, a scene or folder as in `bpfn predict`, a dataset, or a run folder.",
    metavar="PC1|SCENE|RUN",
)
SECOND = options.path_argument(help="Second cloud; not needed if the first path holds both.", metavar="PC2")
FLOW = options.path(
    "--flow", help="Flow to show, .npy or .npz, as `bpfn predict` writes it; repeatable.", metavar="FILE"
)
CHECKPOINT = options.path(
    "--checkpoint",
    help="Network whose flow is shown, as in `bpfn predict`; repeatable, shown side by side.",
    metavar="FILE|RUN|NAME",
)
SCENES = typer.Option(
    "--scenes", min=1, max=1000, help="Scenes of a folder, dataset or run, evenly chosen.", metavar="N"
)
PAGE, STILL, MANY = Path("scene.html"), ".png", Path("view")


@dataclass(frozen=True, kw_only=True)
class ViewFlags:
    """What `bpfn view` takes."""

    first: Annotated[Path, FIRST]
    second: Annotated[Path | None, SECOND] = None
    flow: Annotated[list[Path] | None, FLOW] = None
    checkpoint: Annotated[list[Path] | None, CHECKPOINT] = None
    out: Annotated[Path | None, options.out("the page; default: scene.html, or view/ for many scenes")] = None
    png: Annotated[bool, options.switch("--png", "Write a PNG beside each page; needs no display.")] = False
    scenes: Annotated[int, SCENES] = 4
    frame: Annotated[Frame | None, FRAME] = None
    axes: Annotated[str | None, AXES] = None
    columns: Annotated[int | None, COLUMNS] = None
    center: Annotated[
        bool, options.switch("--center", "Subtract an origin before prediction; for map coordinates.")
    ] = False
    remove_ground: Annotated[bool, options.switch("--remove-ground", "Predict no flow for the ground plane.")] = False
    points: options.SeenPoints = None
    seed: options.Seed = 0
    device: options.Device = "auto"
    force: options.Force = False


@options.takes(ViewFlags)
def view(flags: ViewFlags) -> None:
    """Show two clouds and the flow between them in a page for the browser.

    The page is one file that needs no network and no server. It shows both clouds, the flow as color and as lines, and
    the first cloud moved by the flow; where the true flow is known, also the error. Several networks are shown side by
    side. Without --checkpoint and --flow, the network is `weightnet4`, which comes with bpfn. Press ? in the page for
    its keys.

    For a folder, a dataset (its test scenes) or a run (its network on the test scenes of its data), --out is a folder
    (default `view`) with a page for each of --scenes scenes. If --out ends in .png, a picture is written in place of a
    page.

    \b
    Examples:
      $ bpfn view a.ply b.ply --frame lidar --out ab.html            # two scans
      $ bpfn view a.ply b.ply --flow flow.npy                        # a flow from anywhere, a row for each row of a.ply
      $ bpfn view data/kitti/000083 --checkpoint baseline --checkpoint weightnet4  # two networks side by side
      $ bpfn view runs/latest                                        # a run's network on scenes of its data
      $ bpfn view data/kitti --scenes 10 --png                       # ten test scenes, also as pictures
    """
    from bpfn_cli.files import made_folder
    from bpfn_cli.viewing.libraries import need_viz

    stills = flags.png or (flags.out is not None and flags.out.suffix == STILL)
    need_viz("jinja2", *(["matplotlib"] if stills else []))
    asked = _asked(flags)
    outputs = _outputs(flags, asked)
    with made_folder(outputs[0][0].parent):
        _claim(flags, asked, outputs)
        _write(flags, asked, outputs)
    pages = [path for paths in outputs for path in paths]
    several = f"{len(pages)} files for {len(outputs)} scenes in {pages[0].parent}"
    finish(", ".join(map(str, pages)) if len(outputs) == 1 else several)
    say(f"to see it, open {pages[0].resolve()}")


@dataclass(frozen=True)
class _Asked:
    """What is shown: pairs in a frame, and weights of networks; None: the default network."""

    pairs: list[Pair]
    many: bool
    frame: str
    checkpoints: list[Path | None]


def _asked(flags: ViewFlags) -> _Asked:
    """Raises: UsageError, DataError, CheckpointError: as `find_source`, `find_weights` and `_data_of`."""
    from bpfn_cli.data.augment import even_rows
    from bpfn_cli.data.clouds.search import find_source
    from bpfn_cli.frames import INTERNAL, axes_of
    from bpfn_cli.runs.record import RECORD_FILE
    from bpfn_cli.shipped import find_weights

    if flags.frame is not None and flags.axes is not None:
        raise UsageError("--frame and --axes: use only one of them")
    run = flags.first if (flags.first / RECORD_FILE).is_file() else None
    if run is not None and flags.second is not None:
        raise UsageError(
            f"{printable(run)}: is a run folder; leave out {printable(flags.second)}, or give it as --checkpoint"
        )
    path, frame = (flags.first, None) if run is None else _data_of(run)
    frame = flags.frame or flags.axes or frame
    if frame is not None:
        axes_of(frame)
    source = find_source(path, flags.second, known_frame=frame is not None)
    pairs = [source.pairs[row] for row in even_rows(len(source.pairs), flags.scenes)]
    if flags.flow and len(pairs) > 1:
        raise UsageError(f"--flow: belongs to one pair, and {printable(path)} holds {len(source.pairs)}; name one")
    named = [*([run] if run else []), *(flags.checkpoint or [])]
    checkpoints: list[Path | None] = [find_weights(one) for one in named]
    return _Asked(
        pairs, len(source.pairs) > 1, frame or source.frame or INTERNAL, checkpoints or ([] if flags.flow else [None])
    )


def _data_of(run: Path) -> tuple[Path, str | None]:
    """The scenes that a run is tested on, or else trained on, and their frame, if they are a user's own clouds."""
    from bpfn_cli.runs.record import read_record

    record = read_record(run)
    path = record.data.path if record.paths is None else record.paths.test or record.paths.data
    if not path or not Path(path).exists():
        advice = f"name a scene: `bpfn view SCENE --checkpoint {printable(run)}`"
        raise DataError(f"{printable(run)}: its data {printable(path)} is not here; {advice}")
    tested = record.paths is not None and record.paths.test is not None
    frame = None if tested else record.recipe.get("data", {}).get("frame")
    return Path(path), frame if isinstance(frame, str) else None


def _outputs(flags: ViewFlags, asked: _Asked) -> list[list[Path]]:
    """The files of each pair, all in one folder. Raises: UsageError: --out has another ending."""
    if not asked.many:
        out = flags.out or PAGE
        if out.suffix not in (PAGE.suffix, STILL):
            raise UsageError(f"--out {printable(out)}: use .html for a page, or .png for a picture")
        return [[out, *([out.with_suffix(STILL)] if flags.png and out.suffix != STILL else [])]]
    folder, endings = flags.out or MANY, [PAGE.suffix, *([STILL] if flags.png else [])]
    if folder.suffix in (PAGE.suffix, STILL):
        raise UsageError(f"--out {printable(folder)}: several scenes need a folder; leave out {folder.suffix}")
    return [[folder / f"{pair.name}{ending}" for ending in endings] for pair in asked.pairs]


def _claim(flags: ViewFlags, asked: _Asked, outputs: list[list[Path]]) -> None:
    """Check before any work that the files can be written."""
    from bpfn_cli.files import claim_output, claim_outputs

    inputs = [path for pair in asked.pairs for path in pair.inputs]
    inputs += [path for path in (*(flags.flow or []), *asked.checkpoints) if path is not None]
    paths = [path for each in outputs for path in each]
    if asked.many:
        claim_outputs(paths[0].parent, [path.name for path in paths], force=flags.force, inputs=inputs)
    else:
        for path in paths:
            claim_output(path, force=flags.force, inputs=inputs)


def _write(flags: ViewFlags, asked: _Asked, outputs: list[list[Path]]) -> None:
    from bpfn_cli.data.clouds.pairs import PairReader
    from bpfn_cli.frames import describe_frame
    from bpfn_cli.prediction.flow_files import read_flow
    from bpfn_cli.prediction.pair import Treatment
    from bpfn_cli.prediction.scenes import predict_scene, unique_names
    from bpfn_cli.viewing.panels import Panels

    reader, predictors = PairReader(flags.columns), _predictors(flags, asked)
    treatment = Treatment(center=flags.center, remove_ground=flags.remove_ground, invalid="nan")
    say(f"frame: {describe_frame(asked.frame)}")
    with ConsoleProgress().bar("drawing") as bar:
        for done, (pair, paths) in enumerate(zip(asked.pairs, outputs, strict=True), start=1):
            clouds, files = reader(pair), flags.flow or []
            flows = {name: read_flow(path, len(clouds.first.points)) for name, path in unique_names(files).items()}
            scene = predict_scene(predictors, clouds, pair.name, treatment, flows=flows, frame=asked.frame)
            for path in paths:
                _draw(scene, path)
            bar(done, len(outputs))
            for panel in Panels.of(scene).flows:
                echo(f"{pair.name}: {panel.name}: {panel.figures}")


def _draw(scene: Scene, path: Path) -> None:
    from bpfn_cli.viewing.page import write_scene_page
    from bpfn_cli.viewing.still import write_still

    (write_still if path.suffix == STILL else write_scene_page)(scene, path)


def _predictors(flags: ViewFlags, asked: _Asked) -> dict[str, FlowPredictor]:
    """By the name that is shown."""
    from bpfn_cli.cli.results.networks import read_network
    from bpfn_cli.device import keep_freed_memory
    from bpfn_cli.models.predict import FlowPredictor
    from bpfn_cli.prediction.scenes import unique_names

    keep_freed_memory()
    read = [read_network(one, points=flags.points, device=flags.device) for one in asked.checkpoints]
    return {
        name: FlowPredictor(one.network, points=one.points, frame=asked.frame, seed=flags.seed, device=one.device)
        for name, one in zip(unique_names([one.path for one in read]), read, strict=True)
    }
