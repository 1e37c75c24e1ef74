# SPDX-License-Identifier: MIT
"""Run folders that a page must stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run_folders import evaluation, record

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
