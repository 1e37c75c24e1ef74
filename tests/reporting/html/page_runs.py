# SPDX-License-Identifier: MIT
"""Run folders that a page must stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run_folders import evaluation, record
from tiny_world import LEAST, tiny_network, write_things

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.files import sha256_of
from bpfn_cli.models import save_checkpoint

HOSTILE = "<script>document.title='run'</script>&\"'"
NAN = float("nan")
SCENES = [{"name": f"<b>{number}</b>", "model": 0.01 * number, "zero_flow": 0.3} for number in range(1, 9)]


def write_run(
    folder: Path, *evaluations: dict[str, Any], lines: list[dict[str, Any]] | None = None, **changes: Any
) -> Path:
    (folder / "evaluations").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record(**changes)))
    for number, content in enumerate(evaluations):
        (folder / "evaluations" / f"{number}.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines or []))
    (folder / "command.txt").write_text("bpfn distill --name '<i>x</i>'\n")
    return folder


def epochs(count: int, **changes: Any) -> list[dict[str, Any]]:
    line = {"lr": 1e-3, "loss_supervised": 2.0, "loss_bihint": 1.0, "gradient_share_bihint": 0.3}
    return [{"epoch": epoch, **line, "validation_epe3d": 0.5 / epoch, **changes} for epoch in range(1, count + 1)]


def write_difficult_runs(folder: Path) -> Path:
    """A run of each kind that is hard to show; three of them have no trouble."""
    write_run(folder / "good", evaluation(0.12, scenes=SCENES), lines=epochs(8), recipe={"train": {"lr": 1e-3}})
    write_run(folder / "small", evaluation(0.08, scenes=SCENES), lines=epochs(8), variant="weightnet4", method="hint")
    write_run(folder / HOSTILE.replace("/", "∕"), evaluation(0.15), lines=epochs(3), method="<script>alert(1)</script>")
    write_run(folder / "one-epoch", evaluation(0.2), lines=epochs(1), method="basic", epochs=1, epochs_done=1)
    write_run(folder / "no-evaluation", lines=epochs(4), state="interrupted", method="rkd")
    nothing = {"loss_supervised": NAN, "validation_epe3d": NAN}
    write_run(folder / "nan", evaluation(0.25), lines=epochs(4, **nothing), method="ail")
    lines = epochs(4)
    for epoch in (1, 4):
        lines[epoch - 1]["validation_epe3d"] = NAN
    write_run(folder / "nan-validation", lines=lines, state="interrupted", method="aht")
    write_run(folder / "no-log", evaluation(0.3), method="pairwise")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "run.json").write_text('{"format": 1, "name": "<img src=x>"')
    return folder


def write_many_runs(folder: Path, count: int, scenes: int = 142, lines: int = 100) -> Path:
    """Runs of 25 methods with several seeds each; 142 are the test scenes of KITTI."""
    rows = [{"name": f"{row:06d}", "model": 0.01 * row, "zero_flow": 0.4} for row in range(1, scenes + 1)]
    for number in range(count):
        content, method = evaluation(0.1 + 0.001 * number, scenes=rows), f"method{number % 25}"
        write_run(folder / f"run{number}", content, lines=epochs(lines), method=method, seed=number // 25)
    return folder


def write_evaluated_run(folder: Path) -> Path:
    """`runs/run` with weights and data that are still there; scenes with greater numbers have greater errors."""
    data, run = write_things(folder / "things", val=5), folder / "runs" / "run"
    scenes = open_dataset(data, "test")
    rows = [{"name": name, "model": 0.1 * number} for number, name in enumerate(scenes.names, start=1)]
    write_run(run)
    save_checkpoint(run / "student.safetensors", tiny_network())
    dataset = {"kind": "flyingthings3d", "split": "test", "path": str(data), "scenes": 5, "sha256": scenes.identity()}
    weights = {"which": "best", "sha256": sha256_of(run / "student.safetensors")}
    content = evaluation(0.3, dataset=dataset, checkpoint=weights, points=LEAST, scenes=rows)
    (run / "run.json").write_text(json.dumps(record(weights_sha256=weights["sha256"])))
    (run / "evaluations" / "a.json").write_text(json.dumps(content))
    return run


def write_study(folder: Path) -> Path:
    """Two methods with three seeds each, and errors of slow and fast points."""
    for method, epe3d in (("scratch", 0.12), ("basic", 0.1)):
        for seed in range(3):
            name, error = f"weightnet48-{method}-seed{seed}", epe3d + 0.01 * seed
            table = {"partition": "speed", "classes": ["0 to 2", "2 and more"], "points": [20, 10]}
            table["epe3d"] = {"model": [error, 2 * error], "zero_flow": [0.1, 3.0]}
            content = evaluation(error, scenes=SCENES, by_class=[table], ego_motion="fitted")
            about = {"method": method, "seed": seed, "cell": name, "control": None}
            write_run(folder / name, content, lines=epochs(3), **about)
    return folder
