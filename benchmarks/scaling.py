# SPDX-License-Identifier: MIT
"""Plot time and memory against the number of points and the batch size.

Each configuration is one `bpfn bench` in its own process, so none inherits the memory of another.

    python benchmarks/scaling.py --out scaling.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpfn_cli.files import write_json

POINTS = [2**exponent for exponent in range(10, 17)]
BATCHES = [1, 2, 4, 8]
POINTS_OF_A_BATCH = 8192


def main() -> None:
    """Measure, update the JSON after each configuration, and plot it."""
    options = _options()
    result: dict[str, Any] = {"variant": options.variant, "by_points": [], "by_batch": [], "failed": []}
    plan = [("by_points", points, 1) for points in options.points]
    plan += [("by_batch", options.batch_points, batch) for batch in options.batch]
    for axis, points, batch in plan:
        words = ["--variant", options.variant, "--points", points, "--batch", batch, "--device", options.device]
        words += ["--rounds", options.rounds, *(["--train"] if options.train else [])]
        words += [] if points * batch <= options.plain_up_to else ["--no-plain"]
        command = [sys.executable, "-m", "bpfn_cli.cli", "bench", *map(str, words), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:  # bpfn has printed the reason
            result["failed"].append({"points": points, "batch": batch, "exit_code": done.returncode})
        else:
            found = json.loads(done.stdout)
            result[axis] += found.pop("results")
            result |= found
        write_json(options.out, result)
    print(f"written: {options.out}")
    _draw(result, options.out.with_suffix(".png"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="baseline")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--train", action="store_true", help="measure a training step instead of inference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, nargs="*", default=POINTS, help="numbers of points, at batch size 1")
    parser.add_argument("--batch", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--batch-points", type=int, default=POINTS_OF_A_BATCH, help="points of each cloud for --batch")
    parser.add_argument("--plain-up-to", type=int, default=16384, help="largest points times batch for the plain path")
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    return parser.parse_args()


def _draw(result: dict[str, Any], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot, because matplotlib is not installed: pip install matplotlib")
        return
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, 2, squeeze=False)
    for column, (axis, size) in enumerate((("by_points", "points"), ("by_batch", "batch"))):
        for row, (quantity, label) in enumerate((("median_ms", "time [ms]"), ("peak_memory_mb", "memory [MB]"))):
            axes = grid[row][column]
            for name in ("fast", "plain"):
                measured = [one for one in result[axis] if one[name] is not None]
                sizes, values = [one[size] for one in measured], [one[name][quantity] for one in measured]
                axes.plot(sizes, values, "o-", label=name)
                if name == "fast" and values:
                    axes.plot(sizes, _proportional(sizes, values[-1]), "k:", label=f"proportional to {size}")
            axes.set_xscale("log", base=2)
            axes.set(yscale="log", xlabel=size, ylabel=label)
            axes.legend()
    machine = result.get("machine", {})
    figure.suptitle(
        f"{result['variant']}, {result.get('mode')}; {machine.get('cpu')}, {machine.get('threads')} threads"
    )
    figure.savefig(path, dpi=150)
    print(f"written: {path}")


def _proportional(sizes: Sequence[int], last: float) -> list[float]:
    return [last * size / sizes[-1] for size in sizes]


if __name__ == "__main__":
    main()
