# SPDX-License-Identifier: MIT
"""Learning curves of networks: all in one plot, and the terms of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import mean

from bpfn_cli.figures.curves import Curve, Panel, band_figure, panels_figure
from bpfn_cli.reporting.drawings.drawing import Drawing, file_stem
from bpfn_cli.reporting.drawings.networks import SeedGroup, distinguishable
from bpfn_cli.runs.record import RunRecord

HELD_OUT, TEST = "held-out scenes", "the test split"
# What a validation measures: EPE3D, or without labels a stand-in for it.
VALIDATED = {
    "validation_epe3d": "validation",
    "validation_teacher_distance": "distance to the teacher",
    "validation_nearest": "distance between the clouds",
}
TRAINING_EPE3D = "figure_supervised_epe3d"
SEEDS = "With several seeds, lines are means and bands reach from the lowest to the highest."


def learning_drawings(networks: Sequence[SeedGroup], most: int | None = None) -> Iterator[Drawing]:
    """The validation of all networks of a variant, then the terms of each network.

    Args: most: networks whose terms are drawn, the newest; None: all.
    """
    for variant in dict.fromkeys(one.record.variant for one in networks):
        members = [one for one in networks if one.record.variant == variant and any(run.curve for run in one.drawn)]
        for where in dict.fromkeys(scenes_of(one.record) for one in members):
            yield from _validation([one for one in members if scenes_of(one.record) == where], variant, where)
    newest = {one.label for one in sorted(networks, key=lambda one: one.newest)[-(most or len(networks)) :]}
    for one in networks:
        if one.label in newest:
            yield from _terms(one)


def scenes_of(record: RunRecord) -> str:
    """The scenes that a run is validated on."""
    return TEST if record.selected_on == "test" else HELD_OUT


def teacher_line(records: Sequence[RunRecord]) -> dict[str, float]:
    """EPE3D of the teacher on the validated scenes, if all but controls learn from one: a mean over their splits."""
    teachers = [one.teacher for one in records if one.teacher and one.control is None]
    known = [one.held_out_epe3d for one in teachers if one.held_out_epe3d is not None]
    return {"teacher": mean(known)} if known and len({one.sha256 for one in teachers}) == 1 else {}


def _validation(networks: Sequence[SeedGroup], variant: str, where: str) -> Iterator[Drawing]:
    shown, note = distinguishable(networks)
    curves = {one.label.removeprefix(f"{variant}, "): _validation_curve(one) for one in shown}
    if len(curves) < len(shown):
        curves = {one.label: _validation_curve(one) for one in shown}
    curves = {label: curve for label, curve in curves.items() if curve.epochs.size}
    if not curves:
        return
    panel = Panel("EPE3D [m]", curves, teacher_line([one.record for one in shown]), log=True)
    caption = f"EPE3D of {variant} on {where}. {SEEDS} {note}".rstrip()
    stem = file_stem("validation", variant) + ("-test" if where == TEST else "")
    yield Drawing("learning", stem, caption, partial(band_figure, panel, f"{variant}, {where}"))


def _terms(network: SeedGroup) -> Iterator[Drawing]:
    names = list(dict.fromkeys(name for one in network.metrics for name in one.values))
    if not names:
        return

    def curves(prefix: str) -> dict[str, Curve]:
        return {name.removeprefix(prefix): _curve(network, name) for name in names if name.startswith(prefix)}

    errors = {label: _curve(network, name) for name, label in VALIDATED.items() if name in names}
    if TRAINING_EPE3D in names:
        errors["training scenes"] = _curve(network, TRAINING_EPE3D)
    lines = teacher_line([run.record for run in network.drawn]) if errors else {}
    panels = [
        Panel("weighted loss terms", curves("loss_"), log=True),
        Panel("share of the gradient", curves("gradient_share_"), missing="not measured (train.gradient_every)"),
        Panel("EPE3D [m]", errors, lines, log=True, missing="no validation"),
        Panel("learning rate", {"learning rate": _curve(network, "lr")} if "lr" in names else {}, log=True),
    ]
    omitted = sorted({name for one in network.metrics for name in one.omitted})
    runs = network.drawn
    names_of_runs = ", ".join(run.name for run in runs[:8]) + (", ..." if len(runs) > 8 else "")
    caption = f"{network.label}: {names_of_runs}." + (f" {SEEDS}" if len(runs) > 1 else "")
    caption += f" NaN or infinite, so not drawn: {', '.join(omitted)}." if omitted else ""
    stem = file_stem("learning", network.label)
    yield Drawing("terms", stem, caption, partial(panels_figure, panels, network.label), network.label)


def _validation_curve(network: SeedGroup) -> Curve:
    return Curve.of([run.curve for run in network.drawn])


def _curve(network: SeedGroup, name: str) -> Curve:
    return Curve.of([one.values[name] for one in network.metrics if name in one.values])
