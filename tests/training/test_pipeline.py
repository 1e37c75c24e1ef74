# SPDX-License-Identifier: MIT
"""Whole experiments with the smallest networks on a few scenes: which networks are trained, reused, measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scene_folders import contents, write_scene
from tiny_world import BIG, LEAST, TINY, Quiet, tiny_network, write_things

from bpfn_cli import training
from bpfn_cli.cli.main import run
from bpfn_cli.config import Tree, build, to_tree
from bpfn_cli.data.augment import AugmentSettings
from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.errors import CheckpointError, DataError, UsageError
from bpfn_cli.files import sha256_of
from bpfn_cli.history import plain_steps, read_history
from bpfn_cli.losses import ObjectiveSettings
from bpfn_cli.metrics.evaluation import evaluate_checkpoint
from bpfn_cli.metrics.result import EvaluationResult
from bpfn_cli.models import build_model, initialize_from, load_checkpoint, read_checkpoint, save_checkpoint
from bpfn_cli.models.history import step_of
from bpfn_cli.profiling import count_modules
from bpfn_cli.recipes.early_stop import EarlyStopSettings
from bpfn_cli.recipes.identity import decisive_tree, teacher_key
from bpfn_cli.recipes.recipe import DataSettings, Recipe, TrainSettings
from bpfn_cli.reporting import build_report, read_runs
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.stop import Interruption
from bpfn_cli.strategies import Strategy
from bpfn_cli.training import Changes, Job, pipeline, teacher_checkpoint
from bpfn_cli.training.build import build as build_parts
from bpfn_cli.training.build import check_job, job_notes
from bpfn_cli.training.loop.batches import first_batch
from bpfn_cli.training.pipeline import Outcome, train_teacher
from bpfn_cli.training.resuming import job_of
from bpfn_cli.training.start import create_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_things(tmp_path_factory.mktemp("data") / "things")


def recipe(*losses: str, **changes: Any) -> Recipe:
    augment = AugmentSettings(jitter_m=0.01)
    made = Recipe(
        variant=TINY,
        teacher=BIG,
        loss=losses or ("none",),
        data=DataSettings(points=LEAST, holdout=0, augment=augment),
        train=TrainSettings(epochs=1, batch_size=2),
        objective=ObjectiveSettings(calibration_step=1),
    )
    return replace(made, **changes)


def job_for(data: Path, runs: Path, recipe: Recipe, **changes: Any) -> Job:
    return Job.resolve(recipe, data, runs, CPU, command="bpfn distill", **changes)


def carry_out(job: Job) -> tuple[Outcome, Quiet]:
    progress = Quiet()
    return training.run(job, progress), progress


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def run_names(runs: Path) -> list[str]:
    return sorted(path.parent.name for path in runs.glob("*/run.json") if not path.parent.is_symlink())


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result["rows"]}


# --- a first distillation, and what the next ones find ----------------------------------------------


@pytest.fixture(scope="module")
def distilled(things: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Quiet]:
    """A distillation in an empty folder of runs."""
    return carry_out(job_for(things, tmp_path_factory.mktemp("first") / "runs", recipe("bihint")))


def test_distillation_trains_its_teacher_first(distilled: tuple[Outcome, Quiet]) -> None:
    outcome, progress = distilled
    student, runs = record_of(outcome.folder), outcome.folder.parent
    (teacher_folder,) = set(run_names(runs)) - {outcome.folder.name}
    teacher = record_of(runs / teacher_folder)
    assert outcome.folder.name.startswith("student-tiny-bihint-2")
    assert teacher_folder.startswith("teacher-big-scratch-2")
    described = ("role", "variant", "method", "command", "state", "epochs_done")
    assert [teacher[key] for key in described] == ["teacher", "big", "scratch", "train", "finished", 1]
    assert [student[key] for key in described] == ["student", "tiny", "bihint", "distill", "finished", 1]
    weights = runs / teacher_folder / "student.safetensors"
    (evaluation,) = (runs / teacher_folder / "evaluations").iterdir()
    own = dict(rows(json.loads(evaluation.read_text()))["model"])
    assert own.pop("name") == "model"
    assert student["teacher"] == {
        "run": teacher_folder,
        "variant": "big",
        "path": str(weights),
        "sha256": sha256_of(weights),
        "held_out_epe3d": None,  # none was held out
        "test": own,
    }
    assert teacher["weights_sha256"] == sha256_of(weights)
    assert teacher["teacher"] is None
    assert teacher["teacher_key"] and student["teacher_key"] is None
    assert [stage.split(" on ")[0] for stage in progress.stages] == [
        "training teacher big (scratch)",
        "evaluating",
        "training student tiny (bihint)",
        "evaluating",
    ]
    assert any("teacher: no big trained with this recipe yet; training it first" in line for line in progress.lines)


def test_run_folder_holds_record_evaluation_weights_and_metrics(distilled: tuple[Outcome, Quiet], things: Path) -> None:
    outcome, progress = distilled
    folder = outcome.folder
    record = record_of(folder)
    assert record["complexity"] == {
        "points": 8192,
        "parameters": sum(p.numel() for p in tiny_network().parameters()),
        "unused_parameters": count_modules(TINY, 8192).unused_parameters,
        "module_macs": count_modules(TINY, 8192).macs.total(),
        "checkpoint_bytes": (folder / "student.safetensors").stat().st_size,
    }
    assert record["weights_sha256"] == sha256_of(folder / "student.safetensors")
    assert record["data"]["train_scenes"] == 3
    assert record["data"]["held_out_scenes"] == 0
    (path,) = (folder / "evaluations").iterdir()
    result = outcome.result
    assert path.name == result.file_name
    assert json.loads(path.read_text()) == result.as_dict()
    assert result.checkpoint.sha256 == record["weights_sha256"]
    assert result.checkpoint.which == "last"
    assert json.loads((folder / "summary.json").read_text()) == {**record, "result": result.as_dict()}
    assert [row.name for row in result.rows] == ["model", "zero_flow", "nearest_neighbor", "rigid_icp"]
    assert progress.lines[-1] == result.summary()
    assert read_checkpoint(folder / "student.safetensors").variant == TINY
    line = json.loads((folder / "metrics.jsonl").read_text())
    assert line.keys() >= {"loss_supervised", "loss_bihint", "kappa_bihint"}
    assert line["kappa_bihint"] > 0


def test_next_distillation_reuses_the_teacher_with_equal_results(
    distilled: tuple[Outcome, Quiet], things: Path
) -> None:
    first, _ = distilled
    runs = first.folder.parent
    before = run_names(runs)
    again, progress = carry_out(job_for(things, runs, recipe("bihint"), name="again"))
    assert run_names(runs) == sorted([*before, "again"])
    assert progress.lines[2].endswith(", trained earlier with this recipe")
    assert record_of(again.folder)["teacher"] == record_of(first.folder)["teacher"]
    assert again.result.rows == first.result.rows
    weights = [load_checkpoint(run.folder / "student.safetensors").state_dict() for run in (first, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        ({"loss": ("hint", "basic")}, True),
        ({"variant": "big"}, True),
        ({"objective": ObjectiveSettings(gamma=0.5)}, True),
        ({"teacher": "tiny"}, False),
        ({"seed": 1}, False),
        ({"train": TrainSettings(epochs=2, batch_size=2)}, False),
        ({"data": DataSettings(points=LEAST, holdout=0)}, False),
        ({"data": replace(recipe().data, path="elsewhere", kind="flyingthings3d", workers=3)}, True),
    ],
)
def test_teacher_is_reused_if_its_own_recipe_is_the_same(
    distilled: tuple[Outcome, Quiet], things: Path, change: dict[str, Any], is_found: bool
) -> None:
    runs = distilled[0].folder.parent
    found = teacher_checkpoint(job_for(things, runs, replace(recipe("bihint"), **change)))
    assert (found is not None) == is_found


def test_teacher_of_other_data_is_not_reused(distilled: tuple[Outcome, Quiet], tmp_path: Path) -> None:
    runs = distilled[0].folder.parent
    other = write_things(tmp_path / "other", train=2)
    assert teacher_checkpoint(job_for(other, runs, recipe("bihint"))) is None
    moved = write_things(tmp_path / "moved")
    assert teacher_checkpoint(job_for(moved, runs, recipe("bihint"))) is not None  # the same files elsewhere


def test_network_trained_alone_is_found_as_teacher(things: Path, tmp_path: Path) -> None:
    alone, _ = carry_out(job_for(things, tmp_path, recipe("none", variant="big", teacher="baseline"), name="alone"))
    assert record_of(alone.folder)["role"] == "student"
    assert record_of(alone.folder)["method"] == "scratch"
    later = job_for(things, tmp_path, recipe("basic"))
    assert teacher_checkpoint(later) == alone.folder / "student.safetensors"


@pytest.mark.slow
def test_network_trained_alone_serves_as_teacher(things: Path, tmp_path: Path) -> None:
    carry_out(job_for(things, tmp_path, recipe("none", variant="big", teacher="baseline"), name="alone"))
    student, _ = carry_out(job_for(things, tmp_path, recipe("basic")))
    assert record_of(student.folder)["teacher"]["run"] == "alone"
    assert run_names(tmp_path) == sorted(["alone", student.folder.name])
    assert "teacher" not in rows(student.result.as_dict())


@pytest.mark.slow
def test_trained_teacher_equals_the_network_trained_alone(things: Path, tmp_path: Path) -> None:
    alone, _ = carry_out(job_for(things, tmp_path, recipe("none", variant="big")))
    teacher = train_teacher(job_for(things, tmp_path, recipe("bihint")), Quiet())
    weights = [load_checkpoint(path).state_dict() for path in (alone.folder / "student.safetensors", teacher)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert record_of(alone.folder)["teacher_key"] == record_of(teacher.parent)["teacher_key"]


@pytest.mark.parametrize(
    "other",
    [
        {"objective": ObjectiveSettings(supervised_norm="smooth_l1")},
        {"data": DataSettings(points=LEAST, holdout=0.3, views=1)},
    ],
)
def test_network_of_other_settings_than_the_teachers_is_no_teacher(
    things: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    usual = recipe("none", variant="big", data=DataSettings(points=LEAST, holdout=0.3))
    for wanted, is_teacher in ((usual, True), (replace(usual, **other), False)):
        made = create_run(job_for(things, tmp_path / str(is_teacher), wanted), "student")
        assert (made.record.teacher_key is not None) == is_teacher


@pytest.mark.slow
def test_network_of_another_objective_is_no_teacher(things: Path, tmp_path: Path) -> None:
    scaled = recipe("none", variant="big", objective=ObjectiveSettings(w_gt=0.5))
    outcome, _ = carry_out(job_for(things, tmp_path, scaled))
    assert record_of(outcome.folder)["teacher_key"] is None
    assert teacher_checkpoint(job_for(things, tmp_path, recipe("bihint"))) is None


# --- what is said before and written during a training -----------------------------------------------


def test_plan_is_printed_before_training_and_recorded(distilled: tuple[Outcome, Quiet]) -> None:
    outcome, progress = distilled
    plan = record_of(outcome.folder)["plan"]
    assert [term["name"] for term in plan["terms"]] == ["supervised", "bihint"]
    hints = plan["terms"][1]["hints"]
    assert [(hint["feature"], hint["level"]) for hint in hints] == [
        (feature, level) for feature in ("source", "target") for level in range(4)
    ]
    widths = [(level.embedding, other.embedding) for level, other in zip(TINY.levels, BIG.levels, strict=True)]
    assert [(hint["student"][2], hint["teacher"][2]) for hint in hints[:4]] == widths[:4]
    assert [hint["student"][:2] for hint in hints[:4]] == [[2, LEAST // n] for n in (1, 4, 16, 32)]
    # Two branches, one adapter each where widths differ: in * out weights and out biases.
    assert plan["terms"][1]["parameters"] == 2 * sum(a * b + b for a, b in widths[:4] if a != b)
    assert plan["steps"] == 2
    assert plan["seconds_per_step"] > 0
    assert plan["memory_mb"] > 10
    said = [line for line in progress.lines if line.startswith("plan: ")]
    assert any(
        "kappa, set at step 1 and every 100 steps so that its gradient is 0.3 of the supervised one" in line
        for line in said
    )


def test_metrics_hold_raw_values_weights_gradient_shares_and_active_shares(
    things: Path, tmp_path: Path, outside_teacher: Path
) -> None:
    outcome, _ = carry_out(job_for(things, tmp_path, recipe("bounded", "basic"), teacher=outside_teacher))
    line = json.loads((outcome.folder / "metrics.jsonl").read_text())
    for name in ("supervised", "bounded", "basic"):
        assert {f"{kind}_{name}" for kind in ("loss", "raw", "weight", "gradient_share")} <= line.keys()
        assert line[f"raw_{name}"] == pytest.approx(sum(line[f"raw_{name}_level{level}"] for level in range(4)))
    assert sum(line[f"gradient_share_{name}"] for name in ("supervised", "bounded", "basic")) == pytest.approx(1)
    assert 0 < line["active_bounded"] <= 1
    assert line["teacher_share"] == 1
    assert (line["weight_supervised"], line["weight_basic"]) == (0.7, 0.3)


@pytest.mark.slow
def test_trial_step_leaves_no_trace(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for number in range(2):
        if number:
            monkeypatch.setattr(Strategy, "trial_step", lambda *_: 1.0)
        given = job_for(things, tmp_path / str(number), recipe("adversarial", "hint"))
        outcome, _ = carry_out(given)
        weights.append(load_checkpoint(outcome.folder / "student.safetensors").state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_loss_that_cannot_work_is_found_before_a_teacher_is_trained(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_loss.py").write_text(
        "from bpfn_cli.losses import Card, DistillationLoss\n"
        "class Bad(DistillationLoss):\n"
        "    card = Card(compares='x', formula='x', source='x')\n"
        "    def forward(self, student, teacher, batch):\n"
        "        return student.flows[0].mean() / teacher.flow.mean()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"loss bad_loss:Bad failed: AttributeError: .*bad_loss\.py, line 5"):
        carry_out(job_for(things, tmp_path / "runs", recipe("bad_loss:Bad"), allow_code=True))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ail", "localization"])
def test_loss_is_prepared_once_for_equal_recipes(things: Path, tmp_path: Path, loss: str) -> None:
    first, progress = carry_out(job_for(things, tmp_path, recipe(loss)))
    assert any(stage == f"preparing {loss}" for stage in progress.stages)
    again, later = carry_out(job_for(things, tmp_path, recipe(loss)))
    assert f"{loss}: prepared by an earlier run" in later.lines
    assert again.result.rows == first.result.rows
    (kept,) = (tmp_path / ".prepared").iterdir()
    kept.write_bytes(b"damaged")
    third, _ = carry_out(job_for(things, tmp_path, recipe(loss)))
    assert third.result.rows == first.result.rows


# --- controls, early stop, the cache -------------------------------------------------------------------


def test_random_teacher_is_not_trained(things: Path, tmp_path: Path) -> None:
    outcome, progress = carry_out(job_for(things, tmp_path, recipe("bihint", control="random")))
    record = record_of(outcome.folder)
    assert run_names(tmp_path) == [outcome.folder.name]
    assert record["method"] == "bihint+random-teacher"
    assert (record["teacher"]["path"], record["teacher"]["run"]) == ("random weights", None)
    assert any("teacher: big with untrained weights, as a control" in line for line in progress.lines)


@pytest.mark.slow
def test_shuffled_teacher_gives_other_results(distilled: tuple[Outcome, Quiet], things: Path) -> None:
    runs = distilled[0].folder.parent
    outcome, _ = carry_out(job_for(things, runs, recipe("bihint", control="shuffled")))
    assert record_of(outcome.folder)["method"] == "bihint+shuffled-teacher"
    assert record_of(outcome.folder)["teacher"]["sha256"] == record_of(distilled[0].folder)["teacher"]["sha256"]
    assert outcome.result.rows != distilled[0].result.rows


def epochs(count: int, **changes: Any) -> Recipe:
    train = TrainSettings(epochs=count, batch_size=2, lr=1e-3, lr_floor=0, warmup_steps=0, validate_every=1)
    return recipe("basic", train=train, **changes)


def cached(cache: Path | None, count: int = 1, **data: Any) -> Recipe:
    given = epochs(count)
    train = replace(given.train, teacher_cache=str(cache) if cache else None)
    return replace(given, train=train, data=replace(given.data, **data))


def weights_of(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_checkpoint(outcome.folder / "checkpoints" / "last.safetensors").state_dict()


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def outside_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_checkpoint(path, tiny_network(6, BIG))
    return path


@pytest.mark.parametrize(
    ("at", "shares", "forwards"),
    [
        pytest.param(0.0, [0, 0], 0, marks=pytest.mark.slow),
        (0.5, [1, 0], 2),
        pytest.param(1.0, [1, 1], 4, marks=pytest.mark.slow),
    ],
)
def test_hard_early_stop_runs_the_teacher_no_longer(
    things: Path, tmp_path: Path, outside_teacher: Path, at: float, shares: list[float], forwards: int
) -> None:
    stop = EarlyStopSettings(kind="hard", at=at)
    outcome, _ = carry_out(job_for(things, tmp_path, epochs(2, early_stop=stop), teacher=outside_teacher))
    lines = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["teacher_share"] for line in lines] == shares
    assert ["loss_basic" in line for line in lines] == [share > 0 for share in shares]
    assert record_of(outcome.folder)["teacher_forwards"] == forwards


@pytest.mark.slow
def test_early_stop_at_0_equals_scratch_and_at_1_equals_never(
    things: Path, tmp_path: Path, outside_teacher: Path
) -> None:
    def trained(loss: str, kind: str, at: float) -> dict[str, torch.Tensor]:
        stop = EarlyStopSettings(kind=kind, at=at)  # type: ignore[arg-type]
        chosen = replace(epochs(4, early_stop=stop), loss=(loss,))
        teacher = None if loss == "none" else outside_teacher
        return weights_of(carry_out(job_for(things, tmp_path, chosen, teacher=teacher))[0])

    scratch, never = trained("none", "never", 0.5), trained("basic", "never", 0.5)
    assert equal(scratch, trained("basic", "hard", 0.0))
    assert equal(never, trained("basic", "hard", 1.0))
    assert not equal(scratch, never)


def test_teacher_cache_serves_another_run(things: Path, tmp_path: Path, outside_teacher: Path) -> None:
    plain, first, second = (
        carry_out(job_for(things, tmp_path / "runs", chosen, teacher=outside_teacher))[0]
        for chosen in (cached(None), cached(tmp_path / "cache"), cached(tmp_path / "cache"))
    )
    figures = [record_of(outcome.folder)["teacher_cache"] for outcome in (first, second)]
    assert figures[0]["missed"] == 3  # scenes
    assert figures[1]["missed"] == 0
    assert equal(weights_of(plain), weights_of(first))
    assert equal(weights_of(plain), weights_of(second))
    # The teacher runs on one sample an epoch to verify the cache.
    assert record_of(second.folder)["teacher_forwards"] == 1 < record_of(first.folder)["teacher_forwards"]


@pytest.mark.slow
def test_views_bound_the_teacher_cache(things: Path, tmp_path: Path, outside_teacher: Path) -> None:
    chosen = cached(tmp_path / "cache", 4, views=2)
    outcome, _ = carry_out(job_for(things, tmp_path / "runs", chosen, teacher=outside_teacher))
    assert record_of(outcome.folder)["teacher_cache"]["missed"] == 6
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6


def test_teacher_cache_of_another_teacher_is_rejected(things: Path, tmp_path: Path, outside_teacher: Path) -> None:
    given = job_for(things, tmp_path / "runs", cached(tmp_path / "cache"), teacher=outside_teacher)
    carry_out(given)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        save_file({name: tensor + 0.5 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(DataError, match=r"flows at level 0 differs from the teacher's output; delete"):
        carry_out(given)


def test_keys_without_effect_are_reported(things: Path, tmp_path: Path) -> None:
    chosen = recipe(
        "none",
        control="shuffled",
        early_stop=EarlyStopSettings(kind="hard"),
        objective=ObjectiveSettings(calibration_step=1, hint={"norm": "l2"}),
        strategy={"kind": "plain", "online": {"weight": 2.0}},
    )
    notes = job_notes(job_for(things, tmp_path, build(Recipe, Tree(to_tree(chosen), {}, "x"))))
    said = [line.partition(":")[0] for line in notes if ": no effect, since" in line]
    assert said == ["objective.hint", "strategy.online", "early_stop.kind hard", "control shuffled"]


# --- given weights ----------------------------------------------------------------------------------


def test_given_teacher_is_measured_in_its_own_row(things: Path, tmp_path: Path) -> None:
    path = tmp_path / "from_elsewhere.safetensors"
    save_checkpoint(path, tiny_network(7, BIG), run="gone")
    given = job_for(things, tmp_path / "runs", recipe("basic"), teacher=path)
    assert teacher_checkpoint(given) == path
    outcome, progress = carry_out(given)
    assert progress.lines[2] == f"teacher: {path}"
    assert run_names(tmp_path / "runs") == [outcome.folder.name]
    identity = record_of(outcome.folder)["teacher"]
    assert (identity["run"], identity["variant"], identity["path"]) == (None, "big", str(path))
    assert identity["sha256"] == sha256_of(path)
    measured = rows(outcome.result.as_dict())
    assert identity["test"] == {key: value for key, value in measured["teacher"].items() if key != "name"}
    assert list(measured) == ["model", "zero_flow", "nearest_neighbor", "rigid_icp", "teacher"]
    alone = evaluate_checkpoint(path, open_dataset(things, "test"), points=LEAST, seed=0, device=CPU, progress=Quiet())
    assert {**rows(alone.as_dict())["model"], "name": "teacher"} == measured["teacher"]


def test_teacher_given_by_file_is_traced_to_its_run(distilled: tuple[Outcome, Quiet], things: Path) -> None:
    runs = distilled[0].folder.parent
    trained = record_of(distilled[0].folder)["teacher"]
    outcome, _ = carry_out(job_for(things, runs, recipe("basic"), teacher=Path(trained["path"]), name="given"))
    assert record_of(outcome.folder)["teacher"] == trained
    assert "teacher" not in rows(outcome.result.as_dict())


def test_fine_tuned_run_records_its_initial_weights(things: Path, tmp_path: Path) -> None:
    start, teacher = tmp_path / "start.safetensors", tmp_path / "teacher.safetensors"
    save_checkpoint(start, tiny_network(5), history=plain_steps([step_of("pruned", tiny_network(5))]))
    save_checkpoint(teacher, tiny_network(6, BIG))
    tuned, progress = carry_out(job_for(things, tmp_path / "runs", recipe("none", initial=str(start))))
    record = record_of(tuned.folder)
    assert record["method"] == "fine-tuned"
    assert record["initial"] == {"path": str(start), "sha256": sha256_of(start)}
    assert record["teacher_key"] is None
    assert [(one["step"], one["sha256"]) for one in record["history"]] == [("pruned", sha256_of(start))]
    carried = read_history(read_checkpoint(tuned.folder / "student.safetensors").metadata)
    assert [one.step for one in carried] == ["pruned", "trained"]
    assert carried[-1].epe3d_m == record["best_validation_epe3d"]
    assert carried[-1].model_dump() == {**record["trained"], "sha256": None}
    assert record["trained"]["sha256"] == record["weights_sha256"]
    assert "-fine-tuned-" in tuned.folder.name
    assert any(line.startswith(f"initial weights: {start} (") and " 0 new" in line for line in progress.lines)
    both = job_for(things, tmp_path / "runs", recipe("basic", initial=str(start)), teacher=teacher)
    assert record_of(carry_out(both)[0].folder)["method"] == "fine-tuned+basic"


def test_fine_tuning_starts_from_the_given_weights(things: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, tiny_network(5))
    barely = TrainSettings(epochs=1, batch_size=4, lr=1e-9, lr_floor=0, warmup_steps=0, weight_decay=0)
    outcome, _ = carry_out(job_for(things, tmp_path / "runs", recipe("none", train=barely, initial=str(start))))
    found = load_checkpoint(outcome.folder / "student.safetensors").parameters()
    for tensor, given in zip(found, load_checkpoint(start).parameters(), strict=True):
        torch.testing.assert_close(tensor, given, rtol=0, atol=1e-7)


def test_new_batch_norms_in_fine_tuning_start_as_the_identity(things: Path, tmp_path: Path) -> None:
    start, normalized = tmp_path / "start.safetensors", replace(TINY, name="normalized", bn=True)
    save_checkpoint(start, tiny_network(5))
    job = job_for(things, tmp_path / "runs", recipe("none", variant=normalized, initial=str(start)))
    student = build_parts(job, progress := Quiet()).student
    batch = first_batch(job)
    with torch.no_grad():
        expected = load_checkpoint(start)(batch.pc1, batch.pc2).flows[0]
        torch.testing.assert_close(student.eval()(batch.pc1, batch.pc2).flows[0], expected)
        untouched = initialize_from(fresh := build_model(normalized, LEAST).train(), load_checkpoint(start)).new
        assert untouched and not torch.allclose(fresh(batch.pc1, batch.pc2).flows[0], expected, rtol=0.1)
    assert not (student.get_parameter("level0.composed_module.1.weight") == 1).any()
    assert "batch norms: new; each starts as the identity" in progress.lines


def test_run_is_not_resumed_from_other_initial_weights(things: Path, tmp_path: Path) -> None:
    start, other = tmp_path / "start.safetensors", tmp_path / "other.safetensors"
    save_checkpoint(start, tiny_network(5))
    save_checkpoint(other, tiny_network(6))

    def again(initial: Path | None) -> Quiet:
        tuned = recipe("none", initial=initial and str(initial))
        training.run_or_resume(job_for(things, tmp_path / "runs", tuned, name="tuned"), progress := Quiet())
        return progress

    again(start)
    for initial in (other, None):
        with pytest.raises(UsageError, match=r"is a different training: initial weights .*, now .*; choose another"):
            again(initial)
    assert "already finished" in again(start).lines[-1]
    start.unlink()  # not needed any more
    again(start)


def test_random_adapter_is_a_note_where_no_loss_reads_features(things: Path, tmp_path: Path) -> None:
    expected = "control random_adapter: no effect, since no --loss reads the teacher's features"
    for loss, is_noted in (("basic", True), ("hint", False), ("rkd", True), ("localization", False)):
        notes = list(job_notes(job_for(things, tmp_path, recipe(loss, control="random_adapter"))))
        assert (expected in notes) == is_noted, loss


# --- refusals, before anything is trained -----------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "beta", "is_lowered"),
    [("hint", None, True), ("bihint", None, True), ("basic", None, False), ("hint", 0.8, False)],
)
def test_training_too_short_for_hints_gives_them_their_weight_earlier(
    things: Path, tmp_path: Path, loss: str, beta: float | None, is_lowered: bool
) -> None:
    objective = ObjectiveSettings(calibration_step=2, beta=beta)
    wanted = recipe(loss, objective=objective)  # 3 scenes, batches of 2: 2 steps
    job = job_for(things, tmp_path / "runs", wanted)
    check_job(job)
    assert job.recipe.objective.calibration_step == (0 if is_lowered else 2)
    note = "objective.calibration_step 2: lowered to 0, since the training ends after 2 steps"
    assert (note in job_notes(job)) is is_lowered
    longer = replace(wanted, train=replace(wanted.train, epochs=2))
    assert job_for(things, tmp_path / "runs", longer).recipe.objective.calibration_step == 2


def test_student_larger_than_its_teacher_and_more_workers_than_cores_are_noted(things: Path, tmp_path: Path) -> None:
    job = job_for(things, tmp_path / "runs", recipe("basic", variant="big", teacher="tiny", control="random"))
    progress = Quiet()
    build_parts(job, progress)
    assert any("is larger than its teacher" in line for line in progress.lines)
    job = job_for(things, tmp_path / "runs", recipe("none", data=DataSettings(points=LEAST, workers=256)))
    assert any(note.startswith("data.workers 256: more than the ") for note in job_notes(job))


def test_bad_name_is_refused_before_anything_is_trained(things: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plain folder name"):
        carry_out(job_for(things, tmp_path / "runs", recipe("bihint"), name="../x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [".", "runs", "train/0000000", "../link/runs"])
def test_runs_inside_the_data_are_refused(tmp_path: Path, place: str) -> None:
    data = write_things(tmp_path / "things")
    (tmp_path / "link").symlink_to(data)
    before = contents(data)
    with pytest.raises(UsageError, match=r"lies inside the dataset .*; choose another"):
        carry_out(job_for(data, data / place, recipe("none")))
    assert contents(data) == before


def test_missing_data_and_missing_weights_leave_no_run(things: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(DataError, match="none: no such folder"):
        carry_out(job_for(tmp_path / "none", runs, recipe("none")))
    for changes in ({"teacher": tmp_path / "t.pth"}, {"initial": tmp_path / "t.pth", "teacher": None}):
        with pytest.raises(CheckpointError, match=r"t\.pth: no such checkpoint file"):
            carry_out(job_for(things, runs, recipe("basic" if changes["teacher"] else "none"), **changes))
    assert not runs.exists()


def test_teacher_that_samples_other_points_is_refused(things: Path, tmp_path: Path) -> None:
    other = replace(BIG, name="other", estimator_neighbors=8)
    save_checkpoint(tmp_path / "t.safetensors", build_model(other, LEAST))
    with pytest.raises(CheckpointError, match="teacher other and student tiny sample different points"):
        carry_out(job_for(things, tmp_path / "runs", recipe("basic"), teacher=tmp_path / "t.safetensors"))
    assert not (tmp_path / "runs").exists()


def test_failed_training_records_the_reason(things: Path, tmp_path: Path) -> None:
    data = write_things(tmp_path / "data")
    victim = data / "train" / "0000010" / "pc2.npy"
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(DataError) as error:
        carry_out(job_for(data, tmp_path / "runs", recipe("none"), name="a"))
    record = record_of(tmp_path / "runs" / "a")
    assert (record["state"], record["reason"]) == ("failed", str(error.value))
    assert "0000010/pc2.npy" in record["reason"]
    assert not (tmp_path / "runs" / "a" / "student.safetensors").exists()


def test_failed_teacher_ends_the_distillation(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        carry_out(job_for(things, tmp_path, recipe("basic")))
    found = {record_of(tmp_path / name)["role"]: record_of(tmp_path / name)["state"] for name in run_names(tmp_path)}
    assert found == {"student": "interrupted", "teacher": "interrupted"}
    assert teacher_checkpoint(job_for(things, tmp_path, recipe("basic"))) is None


# --- results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["copy", "symlink"])
def test_subset_and_full_dataset_are_evaluated_on_the_same_scenes(things: Path, tmp_path: Path, link: Any) -> None:
    make_subset(things, tmp_path / "subset", SubsetOptions(fraction=0.5, link=link), processes=1)
    save_checkpoint(tmp_path / "n.safetensors", tiny_network())

    def result(data: Path, split: str = "test") -> EvaluationResult:
        dataset = open_dataset(data, split)
        return evaluate_checkpoint(
            tmp_path / "n.safetensors", dataset, points=LEAST, seed=0, device=CPU, progress=Quiet()
        )

    whole, part = result(things), result(tmp_path / "subset")
    assert whole.dataset.sha256 == part.dataset.sha256
    assert whole.rows == part.rows
    assert whole.file_name == part.file_name
    assert len(open_dataset(tmp_path / "subset", "train")) < 3
    learned = [open_dataset(data, "train").identity() for data in (things, tmp_path / "subset")]
    assert learned[0] != learned[1]
    assert whole.dataset.sha256 not in learned
    assert result(things, "val").dataset.sha256 == whole.dataset.sha256


def test_identity_of_a_split_changes_with_its_files(tmp_path: Path) -> None:
    root = write_things(tmp_path / "things", train=1, val=2)
    before = open_dataset(root, "test").identity()
    write_scene(root / "train" / "0000050", np.zeros((5, 3)), np.zeros((5, 3)))
    assert open_dataset(root, "test").identity() == before
    (root / "val" / "0000010").rename(root / "val" / "0000011")
    renamed = open_dataset(root, "test").identity()
    write_scene(root / "val" / "0000000", np.full((5, 3), -1.0), np.full((5, 3), -1.0))
    assert len({before, renamed, open_dataset(root, "test").identity()}) == 3


def test_data_of_another_format_than_the_recipe_requires_is_refused(things: Path, tmp_path: Path) -> None:
    def of_kind(kind: str) -> Job:
        return job_for(things, tmp_path / "runs", recipe(data=replace(recipe().data, kind=kind)))

    assert of_kind("flyingthings3d").data.train.kind == "flyingthings3d"
    with pytest.raises(UsageError, match=r"data\.kind synthetic: .*things is flyingthings3d"):
        of_kind("synthetic")
    assert not (tmp_path / "runs").exists()


def test_training_on_the_test_split_is_another_training_and_gives_training_errors(
    things: Path, tmp_path: Path, outside_teacher: Path
) -> None:
    usual, runs = cached(tmp_path / "cache"), tmp_path / "runs"
    same = replace(usual, data=replace(usual.data, split="test"))
    assert "split" not in decisive_tree(usual)["data"]  # as in earlier runs
    carry_out(job_for(things, runs, usual, teacher=outside_teacher))
    job = job_for(things, runs, same, teacher=outside_teacher, name="same")
    assert job.data.train.names == job.data.test.names == ("0000000",)
    assert teacher_key(same, "data") != teacher_key(usual, "data")
    outcome, progress = carry_out(job)
    assert any(line.startswith("data.split test: trains on the scenes that it is tested on") for line in progress.lines)
    record = record_of(outcome.folder)
    assert (record["data"]["train_scenes"], record["recipe"]["data"]["split"]) == (1, "test")
    assert record["teacher_cache"]["missed"] == 1  # although a training scene has the same name
    assert job_of(RunFolder.open(outcome.folder), Interruption(), Changes()).data.train.split == "test"
    (table,) = (one for one in build_report(read_runs(runs)).tables if one.kind == "accuracy")
    assert "Training errors, since they learned from the scenes that they are tested on: same." in table.notes
    with pytest.raises(UsageError, match=r"data\.split train: all trainings here learn from split test"):
        job_for(job.data, runs, usual)  # type: ignore[arg-type]


def test_data_flag_takes_precedence_over_the_recipe(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = write_things(tmp_path / "other", train=5)
    words = ["train", "--variant", "tiny", "--set", f"data.path={things}", "--dry-run"]
    assert run(words) == 0
    assert f"3 training scenes in {things}" in capsys.readouterr().err
    assert run([*words, "--data", str(other)]) == 0
    assert f"5 training scenes in {other}" in capsys.readouterr().err
