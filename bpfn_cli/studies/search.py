# SPDX-License-Identifier: MIT
"""Run a search step by step; after a kill, the same search resumes behind the last step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bpfn_cli.errors import DataError, printable
from bpfn_cli.history import Step
from bpfn_cli.models import Variant, save_checkpoint
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning.channels import channel_groups
from bpfn_cli.models.pruning.prune import Pruned, Pruner, Scenes, mean_epe3d
from bpfn_cli.models.pruning.search import budgets, chosen, named_slices, proposal
from bpfn_cli.models.pruning.sensitivity import Sensitivity
from bpfn_cli.models.pruning.sizes import sizes_of
from bpfn_cli.progress import Progress
from bpfn_cli.runs.searches import STATE_FILE, Candidate, SearchState, Trained

SELECTION_BATCHES = 8  # of the scenes to learn from, which networks without training are measured on


@dataclass
class Search:
    """A search in its folder. latency_of: milliseconds of a pass; None: not measured. before: steps of the teacher."""

    folder: Path
    state: SearchState
    pruner: Pruner
    scenes: Scenes
    latency_of: Callable[[Variant], float] | None
    progress: Progress
    before: tuple[Step, ...] = ()

    def run(self) -> SearchState:
        """Do what is left. Raises: DataError: the state does not fit the teacher. DiskError, NonFiniteError."""
        self.measure_teacher()
        named = named_slices(self.pruner.teacher)
        self.measure_candidates(named)
        self.train(named)
        self.save(is_finished=True)
        return self.state

    def save(self, **changes: object) -> None:
        self.state = self.state.changed(**changes)
        self.state.write(self.folder)

    def measure_teacher(self) -> None:
        """Order the channels and measure the sizes, or take both from the state."""
        pruner, state = self.pruner, self.state
        if state.teacher is not None:
            self.restore()
            return
        pruner.prepare(state.definition.importance, self.scenes, self.progress)
        error = mean_epe3d(pruner.teacher, self.scenes.held_out)
        self.save(
            teacher=self.trained("teacher", Pruned(pruner.teacher, 0, error, None)),
            orders=tuple(tuple(order.tolist()) for order in pruner.orders.values()),
            sensitivities=tuple(tuple(known.points[1:]) for known in pruner.sensitivities.values()),
        )

    def restore(self) -> None:
        variant, state = self.pruner.teacher.variant, self.state
        groups, sizes = channel_groups(variant), sizes_of(variant)
        fits = len(groups) == len(state.orders) and len(sizes) == len(state.sensitivities)
        if not fits or any(
            sorted(order) != list(range(group.channels)) for group, order in zip(groups, state.orders, strict=True)
        ):
            where = printable(self.folder / STATE_FILE)
            raise DataError(f"{where}: damaged: its orders are not those of this teacher; use another --out")
        self.pruner.reorder({group: torch.tensor(order) for group, order in zip(groups, state.orders, strict=True)})
        known = zip(sizes, state.sensitivities, strict=True)
        self.pruner.sensitivities = {size: Sensitivity(size, dict(points)) for size, points in known}

    def measure_candidates(self, named: list[Variant]) -> None:
        """Cut networks to all budgets and to the MACs of named variants, and measure them without training."""
        asked, variant = self.state.definition, self.pruner.teacher.variant
        targets = [*budgets(variant, asked.budgets, asked.points), *(self.macs(one) for one in named)]
        scenes, total = self.scenes.used[:SELECTION_BATCHES], len(targets) * asked.tries
        with self.progress.bar("networks without training") as bar:
            for index in range(len(self.state.candidates), total):
                number, attempt = divmod(index, asked.tries)
                key = (asked.seed, number, attempt) if attempt else ()
                found = proposal(variant, self.pruner.sensitivities, targets[number], asked.points, *key)
                found = replace(found, name=self.pruner.name)
                error = mean_epe3d(self.pruner.cut(found), scenes)
                one = Candidate(variant=found, macs=int(self.macs(found)), epe3d_m=error)
                self.save(candidates=(*self.state.candidates, one))
                bar(index + 1, total, f"{one.macs / 1e9:.3g} G MACs: EPE3D {error:.3f} m")

    def train(self, named: list[Variant]) -> None:
        """Train the best networks and the named variants alike, measure them, and write the former."""
        kept = chosen(self.state.candidates, self.state.definition.keep, map(self.macs, named))
        networks = [replace(one.variant, name=f"{n}-{one.macs / 1e9:.3g}G") for n, one in enumerate(kept, start=1)]
        done = {one.name for one in self.state.networks if one.file is None or (self.folder / one.file).is_file()}
        waiting = [one for one in (*networks, *named) if one.name not in done]
        for number, variant in enumerate(waiting, start=1):
            title = f"recovery of {variant.name}, {number} of {len(waiting)}"
            made = self.pruner.make(variant, self.scenes, self.state.definition.recovery_steps, self.progress, title)
            file = None if variant in named else self.write(made)
            others = [one for one in self.state.networks if one.name != variant.name]
            self.save(networks=(*others, self.trained(variant.name, made, file, is_named=variant in named)))

    def write(self, made: Pruned) -> str:
        """Write a network as a checkpoint; returns the name of the file."""
        asked, name = self.state.definition, f"{made.model.variant.name}.safetensors"
        assert self.state.teacher is not None
        known = (self.state.teacher.epe3d_m, self.before, asked.teacher_sha256)
        report = self.pruner.report(asked.importance, made, self.scenes, asked.points, *known)
        save_checkpoint(self.folder / name, made.model, made_by="search", seed=asked.seed, **report.as_dict())
        return name

    def trained(self, name: str, made: Pruned, file: str | None = None, is_named: bool = False) -> Trained:
        variant = made.model.variant
        cost = cost_of(variant, self.state.definition.points)
        return Trained(
            name=name,
            is_named=is_named,
            file=file,
            parameters=cost.parameters,
            macs=cost.macs,
            latency_ms=None if self.latency_of is None else self.latency_of(variant),
            cut_m=made.cut_m,
            epe3d_m=made.epe3d_m,
        )

    def macs(self, variant: Variant) -> float:
        return float(cost_of(variant, self.state.definition.points).macs)
