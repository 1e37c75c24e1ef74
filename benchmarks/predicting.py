# SPDX-License-Identifier: MIT
"""Compare ways to predict the flow between consecutive frames with `bpfn predict`, on a CPU.

One command for each pair, one command for a folder of pairs, and one command for the sequence, which encodes each frame
once. Pairs/s is from the start of the first process to the end of the last; (loop) is the command's own figure, without
starting Python and loading the network. The frames are parts of one rendered scene that moves; the weights are freshly
initialized.

    python benchmarks/predicting.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.files.points import write_points
from bpfn_cli.files import write_json
from bpfn_cli.models import build_model, save_checkpoint
from bpfn_cli.profiling import describe_machine
from bpfn_cli.profiling.workload import synthetic_batch

STEP_M = np.array([0.1, 0.0, 0.3], np.float32)  # of the scene between two frames


def main() -> None:
    """Measure each variant in all ways, and print a table."""
    options = _options()
    result: dict[str, Any] = {"machine": describe_machine(), "points": options.points, "frames": options.frames}
    print(f"{options.points} points, {options.frames} frames")
    print(f"{'':<12}{'':<26}{'pairs/s':>10}{'(loop)':>10}{'peak [MB]':>11}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_inputs(root, options.points, options.frames)
        for variant in options.variant or ["baseline", "weightnet4"]:
            weights = root / f"{variant}.safetensors"
            save_checkpoint(weights, build_model(variant, options.points))
            result[variant] = _measure(root, weights, options.rounds)
            for name, each in result[variant].items():
                loop = f"{each['loop_pairs_per_s']:.2f}" if each["loop_pairs_per_s"] else ""
                row = f"{each['pairs_per_s']:>10.2f}{loop:>10}{each['peak_memory_mb']:>11.0f}"
                print(f"{variant:<12}{name:<26}{row}", flush=True)
    if options.out:
        write_json(options.out, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", help="repeatable; default: baseline and weightnet4")
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1, help="the fastest one counts")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _write_inputs(root: Path, points: int, frames: int) -> None:
    batch = synthetic_batch(points, 1)
    seen = np.concatenate([batch.pc1[0].numpy(), batch.pc2[0].numpy()])
    clouds = []
    for index in range(frames):
        rows = np.random.default_rng(index).choice(len(seen), points, replace=False)
        clouds.append(seen[rows] + index * STEP_M)
    for folder in ("frames", "pairs"):
        (root / folder).mkdir()
    for index, cloud in enumerate(clouds):
        write_points(root / "frames" / f"{index}.npy", cloud)
    for index, (pc1, pc2) in enumerate(pairwise(clouds)):
        np.savez(root / "pairs" / f"{index}.npz", pc1=pc1, pc2=pc2)


def _measure(root: Path, weights: Path, rounds: int) -> dict[str, dict[str, float]]:
    single = sorted((root / "pairs").iterdir())
    ways: dict[str, Sequence[Path]] = {
        "a command for each pair": single,
        "one command, pairs": [root / "pairs"],
        "one command, sequence": [root / "frames"],
    }
    found: dict[str, dict[str, float]] = {}
    for _ in range(rounds):  # the ways take turns
        for name, sources in ways.items():
            once = _run(sources, weights, pairs=len(single))
            if name not in found or once["pairs_per_s"] > found[name]["pairs_per_s"]:
                found[name] = once
    return found


def _run(sources: Sequence[Path], weights: Path, pairs: int) -> dict[str, float]:
    """Run the command once for each source."""
    start, answers = time.perf_counter(), []
    for source in sources:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / ("flow.npy" if source.suffix else "flow")
            words = ["predict", source, "--checkpoint", weights, "--out", out, "--device", "cpu", "--json"]
            command = [sys.executable, "-m", "bpfn_cli.cli", *map(str, words)]
            answers.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    return {
        "pairs_per_s": pairs / (time.perf_counter() - start),
        "loop_pairs_per_s": answers[0].get("pairs_per_s", 0.0),
        "peak_memory_mb": max(answer["peak_memory_mb"] for answer in answers),
    }


if __name__ == "__main__":
    main()
