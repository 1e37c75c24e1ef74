# SPDX-License-Identifier: MIT
from __future__ import annotations

import ast
import json
from copy import deepcopy
from datetime import timedelta, timezone
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import record_with

import bpfn_cli
from bpfn_cli.errors import DataError, UsageError
from bpfn_cli.runs.listing import run_statuses
from bpfn_cli.runs.record import (
    RECORD_FILE,
    File,
    Paths,
    Resumption,
    RunRecord,
    Teacher,
    TeacherCacheCounts,
    TeacherTest,
    TrainingData,
    Versions,
    read_record,
)

PACKAGE = Path(bpfn_cli.__file__).parent
# A folder is a run if it has a record: these modules test for the file, and list it among others.
KNOW_THE_NAME = {
    "cli/results/evaluate.py",
    "cli/results/view.py",
    "runs/record.py",
    "runs/listing.py",
    "training/teacher.py",
    "training/resuming.py",
}

texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
counts = st.integers(0, 1 << 53)
amounts = st.floats(0, 1e12)
shares = st.floats(0, 1)
trees = st.dictionaries(texts, st.recursive(st.none() | st.booleans() | st.integers() | texts, st.lists, max_leaves=4))


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


tests_of_teachers = st.builds(
    TeacherTest, epe3d=amounts, acc3d_strict=shares, epe2d=optional(amounts), acc2d=optional(shares)
)
teachers = st.builds(Teacher, run=optional(names), variant=names, sha256=names, test=optional(tests_of_teachers))
resumptions = st.builds(Resumption, epochs_done=counts, differences=st.lists(texts, max_size=2).map(tuple))
records = st.builds(
    RunRecord,
    name=texts,
    state=st.sampled_from(["running", "finished", "interrupted", "failed"]),
    reason=optional(texts),
    role=st.sampled_from(["teacher", "student"]),
    variant=names,
    method=names,
    seed=st.integers(0, 2**31),
    points=st.integers(1, 1 << 53),
    epochs=counts,
    epoch_seconds=st.lists(amounts, max_size=3).map(tuple),
    epe3d=optional(amounts),
    data=st.builds(TrainingData, source_kind=names, train_scenes=counts, fraction=optional(st.floats(0.001, 1))),
    teacher=optional(teachers),
    teacher_cache=optional(st.builds(TeacherCacheCounts, found=counts, missed=counts, problem=optional(texts))),
    initial=optional(st.builds(File, path=texts, sha256=texts)),
    recipe=trees,
    paths=optional(st.builds(Paths, data=texts, device=texts, teacher=optional(texts))),
    plan=optional(trees),
    resumed=st.lists(resumptions, max_size=2).map(tuple),
    slowest_of=optional(st.lists(texts, max_size=2).map(tuple)),
    versions=st.builds(
        Versions,
        torch=optional(texts),
        threads=optional(st.integers(0, 4096)),
        processes=optional(st.integers(1, 1024)),
    ),
    started=st.datetimes(timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=-5))])),
    finished=optional(st.datetimes(timezones=st.just(timezone.utc))),
)


@given(records)
@settings(max_examples=60, deadline=None)
def test_record_round_trips_through_its_file(record: RunRecord) -> None:
    with TemporaryDirectory() as folder:
        record.write(Path(folder))
        assert read_record(Path(folder)) == record


def test_no_other_module_names_the_file_of_the_record() -> None:
    """Outside docstrings; messages about it may mention it."""
    literal, constant = set(), set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text())
        literal |= {name for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == "run.json"}
        constant |= {name for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "RECORD_FILE"}
        constant |= {name for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "RECORD_FILE"}
    assert literal == {"runs/record.py"}
    assert constant == KNOW_THE_NAME


@pytest.mark.parametrize("name", sorted(KNOW_THE_NAME - {"runs/record.py"}))
def test_modules_that_know_the_file_of_the_record_do_not_open_it(name: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text())
    opening = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "write_json", "write_atomic"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            inside = {getattr(below, "id", getattr(below, "attr", "")) for below in ast.walk(node)}
            assert not (called in opening and "RECORD_FILE" in inside), ast.unparse(node)


def test_record_reads_the_earlier_key_of_its_paths(tmp_path: Path) -> None:
    record_with(paths=Paths(data="/data", device="cpu")).write(tmp_path)
    tree = json.loads((tmp_path / RECORD_FILE).read_text())
    tree["place"] = tree.pop("paths")
    (tmp_path / RECORD_FILE).write_text(json.dumps(tree))
    assert read_record(tmp_path).paths == Paths(data="/data", device="cpu")


def test_record_ignores_unknown_keys_and_refuses_wrong_types(tmp_path: Path) -> None:
    tree = json.loads(record_with().model_dump_json())
    (tmp_path / RECORD_FILE).write_text(json.dumps({**tree, "later": 1}))
    assert read_record(tmp_path) == record_with()
    (tmp_path / RECORD_FILE).write_text(json.dumps({**tree, "seed": "0"}))
    with pytest.raises(
        DataError, match=r"run\.json: damaged: seed: .*; restore it, repeat the run or delete its folder"
    ):
        read_record(tmp_path)


WRONG = (None, 3, "x", [], {}, [[1]], {"a": 1}, -1, 1e300, True)


def paths_of(tree: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys that lead to each part of a tree."""
    below = tree.items() if isinstance(tree, dict) else ()
    return [*([place] if place else []), *(path for key, value in below for path in paths_of(value, (*place, key)))]


def test_every_wrong_type_is_a_data_error_or_harmless(tmp_path: Path) -> None:
    """Whatever the key, listing the run ends with its status or with one line."""
    teacher = Teacher(run="t", variant="big", sha256="0" * 64, path="/t")
    train = {"validate_every": 2, "validation_calendar": "fast", "precision": "32"}
    recipe = {"loss": ["hint"], "train": train, "data": {"split": "test"}}
    whole = record_with(
        teacher=teacher, recipe=recipe, plan={"seconds_per_epoch": 1.0}, paths=Paths(data="/d", device="cpu"),
        versions=Versions(threads=1, processes=1), resumed=(Resumption(),),
    )  # fmt: skip
    tree = json.loads(whole.model_dump_json())
    (tmp_path / "a").mkdir()
    for *above, last in paths_of({key: value for key, value in tree.items() if key != "code"}):
        for wrong in WRONG:
            damaged = deepcopy(tree)
            reduce(lambda part, key: part[key], above, damaged)[last] = wrong
            (tmp_path / "a" / RECORD_FILE).write_text(json.dumps(damaged))
            (status,) = run_statuses(tmp_path)
            assert status.state == "damaged" or read_record(tmp_path / "a").learned_from
            if status.state == "damaged":
                with pytest.raises(DataError, match=rf"run\.json: damaged: {(*above, last)[0]}"):
                    read_record(tmp_path / "a")


def test_changed_validates_the_changes() -> None:
    assert record_with().changed(epochs_done=3).epochs_done == 3
    with pytest.raises(ValueError, match="epochs_done"):
        record_with().changed(epochs_done=-1)


def test_read_record_of_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not a run folder \(it has no run\.json\); `bpfn runs` lists all runs"):
        read_record(tmp_path)
