# SPDX-License-Identifier: MIT
"""`bpfn losses`, your own losses, strategies and studies on the command line."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from command import bpfn, clean_environment, refused

from bpfn_cli.cli.main import run
from bpfn_cli.losses import LOSSES
from bpfn_cli.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]
SMALL = (
    "--epochs",
    1,
    "--set",
    "variant=tiny",
    "--set",
    "train.batch_size=2",
    "--set",
    "objective.calibration_step=0",
    "--set",
    "teacher=big",
    "--set",
    "data.points=1024",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory, small_variants) -> Path:
    """A folder with six synthetic scenes, an untrained teacher and an untrained student."""
    folder = tmp_path_factory.mktemp("work")
    assert bpfn("synth", "--train", 6, "--val", 2, "--out", "data/synthetic", cwd=folder).returncode == 0
    for variant, name in (("big", "teacher"), ("tiny", "student")):
        assert bpfn("slim", "--variant", variant, "--out", f"{name}.safetensors", cwd=folder).returncode == 0
    return folder


# --- the list and the cards ---


def test_list_names_every_loss_and_strategy(tmp_path):
    result = bpfn("losses", cwd=tmp_path)
    assert result.returncode == 0
    words = result.stdout.split()
    assert {*LOSSES, *STRATEGIES} <= set(words)
    assert "measured on" in result.stderr


def test_list_as_json_has_measured_costs(tmp_path):
    found = json.loads(bpfn("losses", "--json", cwd=tmp_path).stdout)
    assert [one["name"] for one in found["losses"]] == list(LOSSES)
    assert all(isinstance(one["extra_cost"], float) for one in found["losses"])
    assert all(one["source"] and one["compares"] and one["adapters"] for one in found["losses"])
    assert found["cost_measured"]


@pytest.mark.parametrize("name", [*LOSSES, *STRATEGIES])
def test_card_has_source_deviations_and_options_with_defaults(name, capsys):
    assert run(["losses", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == name
    text = " ".join(line.strip() for line in lines)
    assert "source: " in text
    settings = LOSSES[name].settings if name in LOSSES else STRATEGIES[name].settings
    for option in getattr(settings, "__pydantic_fields__", {}):
        assert f"option {option} = " in text


def test_wrong_names_are_refused(tmp_path):
    refused(bpfn("losses", "hnit", cwd=tmp_path), 2, "did you mean hint")
    refused(bpfn("losses", "os:getcwd", cwd=tmp_path), 2, "getcwd is not a valid loss", "not a class")
    refused(bpfn("losses", "--check", "--measure", cwd=tmp_path), 2, "give only one of them")


# --- checks on one's own pair ---


def test_check_on_ones_own_pair(work):
    result = bpfn("losses", "bounded", "--check", "--student", "tiny", "--teacher", "teacher.safetensors", cwd=work)
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert len(lines) == 7 + 2 + 3
    assert all(line.startswith("pass ") for line in lines)
    assert result.stderr.splitlines()[-1] == "12 passed, 0 failed, 0 not applicable"


def test_check_finds_a_loss_that_contradicts_its_card(work, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from bpfn_cli.losses import Card, DistillationLoss\n"
        "class Wrong(DistillationLoss):\n"
        "    card = Card(compares='flows', formula='1 + mean |s - t|', source='nowhere')\n"
        "    def forward(self, student, teacher, batch):\n"
        "        return 1 + (student.flows[0] - teacher.flows[0]).abs().mean()\n"
    )
    result = bpfn("losses", "wrong:Wrong", "--check", "--json", "--student", "tiny", "--teacher", "tiny", cwd=tmp_path)
    assert result.returncode == 1
    failed = [one["name"] for one in json.loads(result.stdout) if one["passed"] is False]
    assert "zero at the teacher" in failed


# --- training with them ---


def example() -> str:
    """The loss in docs/extending.md."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "class DirectionLoss" in block]
    return block


@pytest.mark.slow
def test_every_command_knows_a_loss_that_is_a_file_and_a_line(work, tmp_path):
    """In a copy of the package, with the loss of docs/extending.md added."""
    package = tmp_path / "bpfn_cli"
    shutil.copytree(ROOT / "bpfn_cli", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "losses" / "response" / "direction.py").write_text(example())
    registry = package / "losses" / "registry.py"
    entry = '    "basic": BasicLoss,\n'
    text = registry.read_text().replace(entry, entry + '    "direction": DirectionLoss,\n')
    imported = "from bpfn_cli.losses.response.direction import DirectionLoss\n"
    registry.write_text(
        text.replace("from bpfn_cli.losses.response.basic", imported + "from bpfn_cli.losses.response.basic")
    )
    pair = ["--student", "student.safetensors", "--teacher", "teacher.safetensors"]
    small = ["--set", "train.batch_size=1", "--set", "data.points=1024", "--set", "teacher=weightnet8"]
    commands = [
        ["losses"],
        ["losses", "direction"],
        ["losses", "direction", "--check", *pair],
        ["config", "show", "--set", "loss=[direction]", "--set", "objective.direction.level=1"],
        ["distill", "--loss", "direction", "--dry-run", "--variant", "weightnet4", *small],
        ["distill", "--loss", "direction", "--set", "objective.direction.lvel=1", "--dry-run"],
    ]
    script = (
        "import json, sys\n"
        "from bpfn_cli.cli.main import run\n"
        "from bpfn_cli.reporting.methods import method_meanings\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    print('exit code', run(words), flush=True)\n"
        "print(method_meanings()['direction'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)],
        cwd=work,
        env=clean_environment({"PYTHONPATH": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    listed, card, checked, shown, planned, refused_, meaning = result.stdout.split("exit code ")
    assert "directions of flow" in listed
    assert "option level = 0: level to compare" in card
    assert "FAIL" not in checked and "right angle: 1, by hand 1" in checked
    assert "direction:\n    level: 1" in shown
    assert "plan: direction: " in planned
    assert [part[0] for part in (card, checked, shown, planned, refused_, meaning)] == ["0", "0", "0", "0", "0", "2"]
    assert "unknown key objective.direction.lvel, did you mean objective.direction.level?" in result.stderr
    assert meaning.splitlines()[1] == "ground truth and the directions of the teacher's flow"


def test_own_loss_trains_and_its_options_are_kept(work):
    (work / "my_losses.py").write_text(example())
    name = "my_losses:DirectionLoss"
    result = bpfn("distill", "--loss", name, "--teacher", "teacher.safetensors", "--name", "own", *SMALL, cwd=work)
    assert result.returncode == 0, result.stderr
    assert f"plan: {name}: " in result.stderr
    line = json.loads((work / "runs/own/metrics.jsonl").read_text())
    assert line[f"raw_{name}"] > 0
    own = f'objective.own={{"{name}": {{level: 2}}}}'
    changed = bpfn("distill", "--loss", name, "--teacher", "teacher.safetensors", "--dry-run", "--json", *SMALL,
                   "--set", own, cwd=work)  # fmt: skip
    assert changed.returncode == 0, changed.stderr
    assert json.loads(changed.stdout)["recipe"]["objective"]["own"] == {name: {"level": 2}}
    wrong = bpfn("distill", "--loss", name, "--dry-run", *SMALL, "--set", own.replace("level", "lvel"), cwd=work)
    refused(wrong, 2, "unknown key lvel, did you mean level")


def test_invalid_loss_is_refused_before_training(work):
    for name, word in (
        ("json:loads", "is not a valid loss"),
        ("nowhere:Loss", "no module nowhere"),
        ("my losses:x", "write"),
    ):
        refused(bpfn("distill", "--loss", name, *SMALL, cwd=work), 2, word)


def test_code_that_only_a_file_names_is_not_imported(work, monkeypatch):
    """Showing, checking, planning, training and resuming a recipe of unknown origin import nothing."""
    (work / "canary.py").write_text(example() + "\nfrom pathlib import Path\n\nPath('canary').touch()\n")
    name, small = "canary:DirectionLoss", [*SMALL, "--teacher", "teacher.safetensors"]
    (work / "foreign.yaml").write_text(f"loss: ['{name}']\n")
    (work / "foreign-study.yaml").write_text(f"variants: [tiny]\nlosses: [none, '{name}']\nseeds: [0]\n")
    assert bpfn("config", "validate", "foreign.yaml", cwd=work).returncode == 0
    assert name in bpfn("config", "show", "-c", "foreign.yaml", cwd=work).stdout
    for words in (
        ["distill", "-c", "foreign.yaml", *small],
        ["distill", "-c", "foreign.yaml", *small, "--dry-run"],
        ["distill", "--set", f"loss=['{name}']", *small],
        ["compare", "foreign-study.yaml", "--dry-run"],
    ):
        refused(bpfn(*words, cwd=work), 2, name, "allow it with --allow-code, or name it with --loss")
    assert not (work / "canary").exists()
    trained = bpfn("distill", "--loss", name, *small, "--name", "c", "--max-time", "0s", cwd=work)
    assert trained.stderr.splitlines()[-1].endswith("runs/c --allow-code")
    (work / "canary").unlink()
    monkeypatch.delitem(sys.modules, "canary")
    refused(bpfn("resume", "runs/c", cwd=work), 2, name, "--allow-code")
    assert not (work / "canary").exists()
    resumed = bpfn("resume", "runs/c", "--allow-code", "--max-time", "0s", cwd=work)
    assert resumed.returncode == 0, resumed.stderr
    assert (work / "canary").exists()


@pytest.mark.parametrize("joined", ["basic,hint", "basic+hint"])
def test_joined_names_are_split_in_the_advice(work, joined):
    refused(bpfn("distill", "--loss", joined, *SMALL, cwd=work), 2, "repeat --loss", "--loss basic --loss hint")


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        slow(("--strategy", "self", "--loss", "none"), "self"),
        (("--strategy", "online", "--loss", "ail"), "ail+online"),
        slow(("--strategy", "meta", "--loss", "basic", "--set", "data.meta_val=0.3"), "basic+meta"),
        slow(("--strategy", "netaug", "--loss", "none"), "netaug"),
        slow(("--loss", "weighted", "--loss", "rkd", "--early-stop", "linear"), "weighted+rkd+early-stop-linear"),
        slow(("--loss", "pairwise", "--loss", "adversarial", "--validation-calendar", "fast"), "pairwise+adversarial"),
    ],
)  # fmt: skip
def test_methods_train_from_the_command_line(work, arguments, method):
    result = bpfn(
        "distill", *arguments, "--teacher", "teacher.safetensors", *SMALL, "--set", "data.holdout=0.2", "--json",
        cwd=work,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = work / json.loads(result.stdout)["run"]
    about = json.loads((folder / "run.json").read_text())
    assert (about["method"], about["state"]) == (method, "finished")
    assert (folder / "student.safetensors").stat().st_size == about["complexity"]["checkpoint_bytes"]
    again = bpfn("config", "validate", folder / "config.yaml", cwd=work)
    assert again.returncode == 0, again.stderr


def test_strategy_that_lacks_something_says_so(work):
    refused(bpfn("distill", "--strategy", "meta", "--loss", "none", *SMALL, cwd=work), 2, "updates a teacher")
    refused(
        bpfn("distill", "--strategy", "netaug", "--loss", "none", "--variant", "half", *SMALL, cwd=work),
        2,
        "big is nowhere wider than half",
    )


# --- a study ---


@pytest.mark.slow
def test_study_from_a_file_goes_on_where_it_was(work):
    (work / "study.yaml").write_text(
        "recipe: {teacher: big, train: {epochs: 1, batch_size: 2}, objective: {calibration_step: 0}}\n"
        "variants: [tiny]\nlosses: [none, hint]\nseeds: [0]\ncontrols: [random_teacher]\ncontrol_loss: hint\n"
        "teacher: teacher.safetensors\n"
    )
    plan = bpfn("compare", "study.yaml", "--dry-run", cwd=work)
    assert plan.stdout.splitlines() == [
        "to do     tiny-scratch-seed0",
        "to do     tiny-hint-seed0",
        "to do     tiny-hint-random_teacher-seed0",
    ]
    first = bpfn("compare", "study.yaml", "--shard", "1/3", cwd=work)
    assert first.returncode == 0, first.stderr
    assert "2 of 3 trainings are not finished" in first.stderr
    whole = bpfn("compare", "study.yaml", "--json", cwd=work)
    assert whole.returncode == 0, whole.stderr
    assert "scratch-seed0" not in whole.stderr  # it was finished
    kinds = [table["kind"] for table in json.loads(whole.stdout)["tables"]]
    assert kinds == ["means", "differences"]
    folder = work / "runs" / "study"
    assert {"compare.md", "compare_means.csv", "compare_differences.csv"} <= {path.name for path in folder.iterdir()}
    assert "not testable" in (folder / "compare.md").read_text()
    again = bpfn("compare", "study.yaml", "--table", cwd=work)
    assert again.returncode == 0
    report = bpfn("report", "--runs", "runs/study", cwd=work)
    assert report.returncode == 0
    refused(bpfn("compare", "study.yaml", "--shard", "4/3", cwd=work), 2, "--shard 4/3")
    refused(bpfn("compare", "nothing.yaml", cwd=work), 2, "nothing.yaml", "no such")
