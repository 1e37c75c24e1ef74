# SPDX-License-Identifier: MIT
"""`bpfn bench` and `bpfn profile --latency`, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from command import bpfn, refused, succeeded
from scene_folders import write_flyingthings3d

from bpfn_cli.cli.main import run
from bpfn_cli.models import save_checkpoint
from bpfn_cli.profiling import profile_model
from bpfn_cli.profiling.latency import STAGES

TINY_WORDS = ("--points", 1024, "--rounds", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_world import tiny_network

    folder = tmp_path_factory.mktemp("bench")
    save_checkpoint(folder / "tiny.safetensors", tiny_network())
    return folder


def in_process(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("bpfn_cli.profiling.latency.peak_memories_mb", lambda *_, **__: [2.0])
    monkeypatch.setattr("bpfn_cli.profiling.latency.GEMM_SIZE", 64)
    monkeypatch.setattr("bpfn_cli.device.keep_freed_memory", lambda: True)  # which this process could not undo
    return run([*map(str, words)])


def test_json_holds_machine_raw_times_and_the_comparison(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bench", "--checkpoint", "tiny.safetensors", *TINY_WORDS, "--json", "--out", "b.json")
    assert in_process(folder, monkeypatch, *words) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == json.loads((folder / "b.json").read_text())
    assert {"cpu", "cores", "threads", "cuda", "torch"} <= found["machine"].keys()
    assert (found["mode"], found["rounds"], type(found["freed_memory_kept"])) == ("inference", 2, bool)
    (one,) = found["results"]
    assert (one["variant"], one["points"], one["batch"], one["device"]) == ("tiny", 1024, 1, "cpu")
    for path in ("fast", "plain"):
        assert len(one[path]["times_ms"]) == 2
        assert one[path]["p90_ms"] >= one[path]["median_ms"] > 0
        assert one[path]["peak_memory_mb"] > 0
    assert set(one["stages_ms"]) == set(STAGES) - {"backward"}
    assert sum(one["stages_ms"].values()) == pytest.approx(one["fast"]["median_ms"])
    assert one["floor_ms"] > 0
    assert "written: b.json" in captured.err


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(folder: Path) -> None:
    words = ("--checkpoint", "tiny.safetensors", "--points", 1024, "--rounds", 1, "--json")
    result = bpfn("bench", *words, cwd=folder)
    assert result.returncode == 0, result.stderr
    (one,) = json.loads(result.stdout)["results"]
    assert one["fast"]["peak_memory_mb"] > 0
    assert len(one["plain"]["peak_memories_mb"]) == 3


def test_table_has_a_row_a_case(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bench", "--checkpoint", "tiny.safetensors", "--points", 1024, "--points", 1100)
    assert in_process(folder, monkeypatch, *words, "--train", "--rounds", 1, "--default-allocator") == 0
    said = capsys.readouterr().out
    for expected in ("training step", "batch 1", "1100", "[ms]", "faster", "Backward", "returned to the system"):
        assert expected in said
    assert said.count("tiny") == 4


def test_reduced_precision_is_in_the_title_and_has_no_floor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "bench",
        "--checkpoint",
        "tiny.safetensors",
        "--points",
        1024,
        "--rounds",
        1,
        "--precision",
        "bf16",
        "--json",
    )
    assert in_process(folder, monkeypatch, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["precision"], found["results"][0]["floor_ms"]) == ("bf16", None)
    with_title = (*words[:-1], "--no-plain")
    assert in_process(folder, monkeypatch, *with_title) == 0
    assert "bf16" in capsys.readouterr().out


def test_plain_path_is_not_measured_on_large_clouds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bpfn_cli.profiling.latency.MOST_PLAIN_POINTS", 1023)
    assert in_process(folder, monkeypatch, "bench", "--checkpoint", "tiny.safetensors", *TINY_WORDS) == 0
    said = capsys.readouterr().out
    assert "Plain path not measured for tiny at 1024 points" in said
    assert "faster" not in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--points", 1023], 2, "--points 1023: for baseline"),
        (["--points", 0], 2, "--points"),
        (["--points", 2048, "--points", 2048], 2, "--points 2048: duplicate"),
        (["--points", 10**7], 2, "--points"),
        (["--points", "many"], 2, "--points"),
        (["--batch", 0], 2, "--batch"),
        (["--batch", 2, "--batch", 2], 2, "--batch 2: duplicate"),
        (["--rounds", 0], 2, "--rounds"),
        (["--variant", "weightnet84"], 2, "weightnet48"),
        (["--variant", "half", "--variant", "half"], 2, "--variant half: duplicate"),
        (["--variant", "half", "--all"], 2, "--all"),
        (["--checkpoint", "none.pth"], 4, "none.pth"),
        (["--device", "gpu"], 2, "--device gpu"),
        (["--device", "cpu", "--device", "cuda:99"], 2, "cuda:99"),
        (["--out", "."], 5, "is a folder"),
        (["--plot", "new/a.png", "--out", "tiny.safetensors"], 5, "exists"),
        (["--checkpoint", "tiny.safetensors", "--out", "tiny.safetensors", "--force"], 2, "--out tiny.safetensors"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line(
    words: list[Any],
    code: int,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert in_process(folder, monkeypatch, "bench", *words) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert said in line
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_existing_result_is_kept_without_force(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "kept.json").write_text("{}")
    assert in_process(folder, monkeypatch, "bench", "--out", "kept.json") == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "kept.json: exists" in line
    assert (folder / "kept.json").read_text() == "{}"


def test_busy_cores_are_busy_meanwhile_and_free_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started, popen = [], subprocess.Popen

    def start(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*words, **options))
        return started[-1]

    monkeypatch.setattr("bpfn_cli.profiling.conditions.subprocess.Popen", start)
    before = os.times()
    words = ("bench", "--checkpoint", "tiny.safetensors", *TINY_WORDS, "--no-plain", "--busy", 2)
    assert in_process(folder, monkeypatch, *words) == 0
    assert len(started) == 2 and all(process.returncode is not None for process in started)
    assert os.times().children_user > before.children_user
    assert "2 cores kept busy by others" in " ".join(capsys.readouterr().out.split())


def test_first_pass_holds_the_medians_over_its_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rounds, each of `import torch`, a process with one pass, and one with later passes too."""
    passes = ([0.6, 0.1, 0.3, 0.2], [0.5, 0.4, 0.5, 0.6], [0.9, 0.2, 0.3, 0.4])
    times = iter([seconds for own in passes for seconds in (2.0, 4.0 + own[0])])
    later = iter(passes)
    monkeypatch.setattr("bpfn_cli.profiling.conditions._timed", lambda call: (next(times), None))
    monkeypatch.setattr("bpfn_cli.profiling.conditions.in_new_process", lambda *words: next(later))
    words = ("bench", "--checkpoint", "tiny.safetensors", "--points", 1024, "--first", "--rounds", 3, "--json")
    assert in_process(folder, monkeypatch, *words) == 0
    (one,) = json.loads(capsys.readouterr().out)["results"]
    found = [one[name] for name in ("import_torch_s", "process_s", "first_s", "later_s", "times_least")]
    assert found == pytest.approx([2.0, 4.6, 0.6, 0.3, 2.0])


@pytest.mark.slow
def test_first_pass_of_new_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("bench", "--checkpoint", "tiny.safetensors", "--points", 1024, "--first", "--rounds", 1)
    assert in_process(folder, monkeypatch, *words, "--out", "first.json") == 0
    assert "Whole process" in capsys.readouterr().out.replace("\n", " ")
    found = json.loads((folder / "first.json").read_text())
    assert (found["mode"], found["rounds"], found["freed_memory_kept"]) == ("first inference", 1, True)
    (one,) = found["results"]
    assert 0 < one["first_s"] < one["process_s"]
    assert one["times_least"] == pytest.approx(one["process_s"] / (one["import_torch_s"] + one["later_s"]))


def test_first_call_does_not_load_torchs_compiler() -> None:
    """It takes 1.5 s."""
    code = (
        "import sys, torch\nfrom tiny_world import LEAST, tiny_network\n"
        "tiny_network()(torch.rand(1, LEAST, 3), torch.rand(1, LEAST, 3))\n"
        "assert not {'sympy', 'torch._dynamo'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_profile_adds_the_latency_of_the_fast_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bpfn_cli.profiling.profile_model", cache(profile_model))
    words = ("profile", "--checkpoint", "tiny.safetensors", "--points", 1024)
    assert in_process(folder, monkeypatch, *words, "--latency", "--json") == 0
    latency = json.loads(capsys.readouterr().out)["latency"]
    assert len(latency["fast"]["times_ms"]) == 10
    assert (latency["plain"], latency["plain_skipped"], latency["points"]) == (None, None, 1024)
    assert in_process(folder, monkeypatch, *words, "--latency") == 0
    said = capsys.readouterr().out
    for expected in ("Time of one pair on cpu", "Median [ms]", "p90 [ms]"):
        assert expected in said


@pytest.mark.slow
def test_formats_are_compared_in_one_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfn_cli.profiling import formats

    measured = tuple(one for one in formats.MEASURED if one.format != "torch")  # its export takes long
    monkeypatch.setattr(formats, "MEASURED", measured)
    monkeypatch.setattr(formats, "_peak_mb", lambda *_: 2.0)
    write_flyingthings3d(folder / "things", train=1, points=1100)
    words: tuple[object, ...] = ("bench", "--formats", "--checkpoint", "tiny.safetensors", *TINY_WORDS)
    done = succeeded(bpfn(*words, "--data", "things", "--json", cwd=folder))
    rows = json.loads(done.stdout)["results"]
    assert [(one["format"], one["stored"]) for one in rows] == [(one.format, one.weights) for one in measured]
    whole, sizes = rows[0], {one["format"]: one["bytes"] for one in rows if one["stored"] == "float32"}
    for one in rows:
        assert len(one["times_ms"]) == 2
        assert one["p90_ms"] >= one["median_ms"] > 0
        assert one["epe3d_m"] == pytest.approx(whole["epe3d_m"], rel=0.01 if one["stored"].startswith("float") else 0.1)
        if one["format"] == "pth":
            assert (one["bytes"] < 0.8 * sizes["pth"]) == (one["stored"] != "float32")
    table = succeeded(bpfn(*words, cwd=folder, COLUMNS="200")).stdout
    assert "EPE3D [m]" in table
    assert table.count("onnxruntime") == 5


def test_formats_that_cannot_hold_a_network_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_world import LEAST, TINY

    from bpfn_cli.models import build_model, slim
    from bpfn_cli.profiling import formats

    kept = [one for one in formats.MEASURED if one.format in ("pth", "safetensors")]
    monkeypatch.setattr(formats, "MEASURED", kept)
    monkeypatch.setattr(formats, "_peak_mb", lambda *_: 2.0)
    for embedding, expected in ((32, {"pth", "safetensors"}), (16, {"safetensors"})):
        model = build_model(slim(TINY, "tiny", neighbors={"embedding": embedding}), LEAST)
        assert {one.format for one in formats.measure_formats(model, points=LEAST, rounds=1)} == expected


def test_times_are_drawn_beside_the_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    words = [
        "bench",
        "--checkpoint",
        folder / "tiny.safetensors",
        "--no-plain",
        *TINY_WORDS,
        "--plot",
        tmp_path / "b.png",
    ]
    assert in_process(folder, monkeypatch, *words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "b.svg"]
    assert f"written: {tmp_path / 'b.png'}, {tmp_path / 'b.svg'}" in capsys.readouterr().err
    assert in_process(folder, monkeypatch, *words) == 5  # they exist


def test_memory_of_a_format_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    from tiny_world import tiny_network

    from bpfn_cli.models.exported import FORMATS
    from bpfn_cli.models.exported.base import Request
    from bpfn_cli.profiling.formats import _peak_mb

    path = tmp_path / "f.onnx"
    path.write_bytes(FORMATS["onnx"].write(tiny_network(), Request()))
    assert 1 < _peak_mb("onnx", path, 1024) < 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--formats", "--train"), "--train: has no effect with --formats"),
        (("--formats", "--points", 1024, "--points", 2048), "--points: give it once with --formats"),
        (("--data", "."), "--data: only --formats measures accuracy"),
        (("--formats", "--no-plain"), "--no-plain: has no effect with --formats"),
        (("--first", "--no-plain"), "--no-plain: has no effect with --first"),
        (("--formats", "--plot", "a.png"), "--plot: has no effect with --formats"),
        (("--first", "--plot", "a.png"), "--plot: draws the times of passes; leave out --first"),
        (("--formats", "--checkpoint", "tiny.safetensors", "--points", 1023), "--points 1023: use 1024 to 65536"),
    ],
)
def test_flags_without_effect_are_refused(folder: Path, words: tuple[object, ...], message: str) -> None:
    refused(bpfn("bench", *words, cwd=folder), 2, message)
