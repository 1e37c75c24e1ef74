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
from pathlib import Path
from typing import Any

from bpfn_cli.figures.style import write_figure
from bpfn_cli.figures.timing import scaling_figure
from bpfn_cli.files import write_json
from bpfn_cli.profiling.figures import scaling_panels, title_of

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
    _draw(result, options.out)


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


def _draw(result: dict[str, Any], out: Path) -> None:
    panels = scaling_panels({"points": result["by_points"], "batch": result["by_batch"]})
    try:
        paths = write_figure(scaling_figure(panels, f"{result['variant']}, {title_of(result)}"), out.parent, out.stem)
    except ImportError:
        print('no plot, because matplotlib is not installed: pip install -c constraints.txt -e ".[viz]"')
        return
    print(f"written: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
