# SPDX-License-Identifier: MIT
"""Help, versions and wrong words."""

import json
import subprocess
import sys

import pytest
from command import bpfn, refused

COMMANDS = [
    ["synth"],
    ["prepare"],
    ["prepare", "kitti"],
    ["prepare", "flyingthings3d"],
    ["subset"],
    ["profile"],
    ["bench"],
    ["slim"],
    ["train"],
    ["distill"],
    ["eval"],
    ["predict"],
    ["report"],
    ["config"],
    ["config", "init"],
    ["config", "show"],
    ["config", "validate"],
    ["doctor"],
]


def test_help_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['bpfn', '--help']\n"
        "from bpfn_cli.cli.main import run\n"
        "run(['--help'])\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'pydantic', 'fvcore'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command, tmp_path):
    result = bpfn(*command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    ours = [line for line in result.stdout.splitlines() if "-h " not in line]
    assert not any("<bool>" in line for line in ours)
    if command not in (["prepare"], ["config"]):
        assert "Example" in result.stdout


def test_doctor_lists_versions_as_json(tmp_path):
    found = json.loads(bpfn("doctor", "--json", cwd=tmp_path).stdout)
    assert found["torch"][0].isdigit()
    assert "cpu" in found["devices"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nonsense"], 2, ["nonsense"]),
        (["profile", "--variant", "weightnet84"], 2, ["weightnet48"]),
        (["profile", "--variant", "half", "--all"], 2, ["--all"]),
        (["profile", "--points", "100", "--variant", "half"], 2, ["1024"]),
        (["profile", "--checkpoint", "none.pth"], 4, ["none.pth"]),
        (["profile", "--checkpoint", "."], 4, ["folder"]),
        (["bench", "--points", "100"], 2, ["--points 100", "1024"]),
        (["slim", "--c-mid", "4,4"], 2, ["--c-mid 4,4"]),
        (["slim", "--c-mid", "four"], 2, ["whole numbers"]),
        (["slim", "--width", "0"], 2, ["--width"]),
        (["slim", "--out", "x.pth"], 2, [".safetensors"]),
        (["distill", "--loss", "bihnt"], 2, ["bihnt", "bihint"]),
        (["distill", "--set", "train.epoch=3"], 2, ["train.epochs"]),
        (["distill", "--set", "train"], 2, ["key=value"]),
        (["distill", "--device", "cuda:7"], 2, ["cuda:7"]),
        (["distill", "-c", "missing.yaml"], 2, ["missing.yaml"]),
        (["train", "--data", "nowhere"], 3, ["nowhere"]),
        (["eval"], 4, ["bpfn distill"]),
        (["predict", "a.npy", "b.npy", "--out", "a.txt"], 2, [".npy"]),
        (["predict", "a.npy", "b.npy"], 3, ["a.npy"]),
        (["predict", "a.xyz", "b.xyz"], 3, [".ply"]),
        (["prepare", "kitti", "--source", "nowhere"], 3, ["nowhere"]),
        (["subset", "--source", "nowhere"], 3, ["nowhere"]),
        (["subset", "--fraction", "0"], 2, ["fraction"]),
        (["report", "--source", "nowhere"], 3, ["nowhere"]),
        (["synth", "--height", "3"], 2, ["height"]),
        (["config", "validate", "nowhere.yaml"], 2, ["nowhere.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_get_one_line_and_leave_nothing(words, code, said, tmp_path):
    result = bpfn(*words, cwd=tmp_path)
    refused(result, code, *said)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "data" not in path.parts]
    assert not left


def test_help_and_report_bear_a_poor_terminal(tmp_path):
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"TERMINAL_WIDTH": "x"}, {"COLUMNS": "0", "TERM": "dumb"}):
        for words in (("--help",), ("report",)):
            result = bpfn(*words, cwd=tmp_path, **environment)
            assert result.returncode == 0, result.stderr


def test_closed_stdout_ends_quietly(tmp_path):
    command = f"{sys.executable} -m bpfn_cli.cli config show | head -n 1"
    result = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("variant:")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("config show | true", 0),  # the line before the pipe
        ("losses | true", 0),  # a table
        ("losses --json | true", 0),
        ("losses >&-", 0),
        ("losses >&- 2>&-", 0),
        ("losses --json >/dev/full", 5),
        ("nosuch 2>/dev/full", 2),
        ("nosuch 2>&-", 2),
        ("nosuch 2>&1 | true", 2),
    ],
)
def test_nobody_that_reads_and_full_disks_do_not_change_the_exit_code(tmp_path, line, code):
    command = f"{sys.executable} -m bpfn_cli.cli {line}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "abc"}, {"SLURM_NTASKS": "x", "SLURM_STEP_ID": "0"}])
def test_environment_that_makes_no_sense_is_one_line(tmp_path, environment):
    (name, value), *_ = environment.items()
    refused(bpfn("train", cwd=tmp_path, **environment), 2, f"{name}={value}: a number was expected")


def test_memory_that_has_run_out_is_said_in_one_line(monkeypatch, capsys):
    import torch

    from bpfn_cli.cli import main

    monkeypatch.setattr(main, "app", lambda *_, **__: torch.empty(2**50))
    assert main.run(["train"]) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory" in line


def test_internal_error_writes_its_traceback_to_a_file(tmp_path, monkeypatch, capsys):
    from bpfn_cli.cli import main

    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "app", broken)
    assert main.run(["profile"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert "a bug" in next(tmp_path.glob("bpfn-error-*.log")).read_text()
