# SPDX-License-Identifier: MIT
"""The scenes on which the best network of each accuracy table errs most and least, with pages that show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bpfn_cli.errors import BpfnError, DataError, printable
from bpfn_cli.files import made_folder, sha256_of
from bpfn_cli.metrics.result import EvaluationResult, SceneRow
from bpfn_cli.reporting.drawings.drawing import file_stem
from bpfn_cli.reporting.rows import Result, tables_of
from bpfn_cli.runs.results import RunResults
from bpfn_cli.shipped import STUDENT

if TYPE_CHECKING:
    from bpfn_cli.viewing.scene import Scene

FOLDER = "scenes"
LONGEST_STEM = 100  # of the name of a page, before that of the scene


@dataclass(frozen=True)
class ShownScene:
    """A scene of the list. among: the best or the worst. page: its page, relative to the folder of the report."""

    name: str
    among: str
    epe3d_m: float
    page: str | None = None


@dataclass(frozen=True)
class SceneSet:
    """Scenes of one network. missing: why they have no pages."""

    title: str
    result: Result = field(compare=False)  # `scenes` tells evaluations apart
    scenes: tuple[ShownScene, ...]
    missing: str = ""


def scene_sets(results: RunResults, count: int) -> Iterator[SceneSet]:
    """For each accuracy table, the `count` worst and best scenes of the finished student with the lowest EPE3D.

    Each has a page, which is not written yet.
    """
    used: list[str] = []
    for group in tables_of(results.runs, results.others) if count else ():
        found = [one for one in group if isinstance(one, Result) and _can_be_shown(one)]
        found = [one for one in found if one.record.role == "student"] or found
        if not found:
            continue
        best = min(found, key=lambda one: one.evaluation.model.epe3d)
        stem = file_stem(best.run.name, best.protocol.dataset)[:LONGEST_STEM]
        used.append(stem)
        stem += f"-{used.count(stem)}" * (used.count(stem) > 1)
        ordered = sorted(best.evaluation.scenes, key=lambda scene: (-scene.model, scene.name))
        half = min(count, (len(ordered) + 1) // 2)
        worst, rest = ordered[:half], ordered[half:][-count:]
        shown = [*_shown(worst, "worst", stem), *_shown(rest, "best", stem)]
        title = f"{best.record.variant}, {best.method} ({best.run.name}): {best.protocol.title}"
        yield SceneSet(title, best, tuple(shown))


def page_files(sets: Sequence[SceneSet]) -> list[str]:
    """The files that `write_scenes` may write."""
    return [scene.page for one in sets for scene in one.scenes if scene.page]


def write_scenes(one: SceneSet, folder: Path) -> SceneSet:
    """Write the pages of a set to `folder`. Without its data or weights, the same without pages, and why."""
    from bpfn_cli.viewing.page import write_scene_page

    pages = {scene.name: scene.page for scene in one.scenes if scene.page}
    try:
        scenes = list(_predicted(one.result, list(pages)))
    except BpfnError as error:
        without = tuple(replace(scene, page=None) for scene in one.scenes)
        return replace(one, scenes=without, missing=f"No pages of these scenes: {error}")
    for scene in scenes:
        path = folder / str(pages[scene.name])
        with made_folder(path.parent):
            write_scene_page(scene, path)
    return one


def _can_be_shown(one: Result) -> bool:
    return one.run.complete and one.is_deployed and bool(one.evaluation.scenes)


def _shown(rows: Sequence[SceneRow], among: str, stem: str) -> list[ShownScene]:
    pages = [f"{FOLDER}/{stem}_{file_stem(row.name)}.html" for row in rows]
    return [ShownScene(row.name, among, row.model, page) for row, page in zip(rows, pages, strict=True)]


def _predicted(result: Result, names: Sequence[str]) -> Iterator[Scene]:
    """The scenes as they were evaluated, with the flow of the network. Raises: BpfnError: no data or no weights."""
    from bpfn_cli.data.datasets import open_dataset
    from bpfn_cli.data.loader import evaluation_batches
    from bpfn_cli.metrics.evaluation import network_flow, network_flow_in_parts
    from bpfn_cli.models import load_checkpoint
    from bpfn_cli.viewing.scene import Scene

    evaluation, weights = result.evaluation, result.run.path / STUDENT
    path = Path(evaluation.dataset.path)
    for needed in (weights, path):
        if not needed.exists():
            raise DataError(f"{printable(needed)} is not here")
    dataset = open_dataset(path, evaluation.dataset.split, evaluation.dataset.region)
    _check(evaluation, dataset.identity(), weights)
    if missing := sorted(set(names) - set(dataset.names)):
        raise DataError(f"{printable(path)}: has no scene {printable(missing[0])}")
    network = load_checkpoint(weights)
    parts = evaluation.parts
    predict = network_flow_in_parts(network, "cpu", parts, evaluation.seed) if parts else network_flow(network)
    indices = [dataset.names.index(name) for name in names]
    sampled = {"points": evaluation.points, "batch_size": 1, "seed": evaluation.seed}
    label = f"{result.record.variant}, {result.method}"
    for batch in evaluation_batches(dataset, indices, **sampled):
        yield Scene.of_batch(batch, {label: predict(batch)[0].numpy()})


def _check(evaluation: EvaluationResult, identity: str, weights: Path) -> None:
    """Raises: DataError: data or weights are not those of the evaluation."""
    if identity != evaluation.dataset.sha256:
        raise DataError(f"{printable(evaluation.dataset.path)}: has changed since the evaluation; repeat `bpfn eval`")
    if sha256_of(weights) != evaluation.checkpoint.sha256:
        raise DataError(f"{printable(weights)}: has changed since the evaluation; repeat `bpfn eval`")
