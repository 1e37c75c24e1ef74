# SPDX-License-Identifier: MIT
"""Networks that `bpfn search` found against the named variants of as many MACs, after equal training.

Both are cut from one teacher, with the most important channels, and trained on the same scenes in the same order. They
are tested on other driving scenes and on KITTI, which they have not seen. What is finished is not repeated.

    bpfn synth --live --train 800 --val 32 --seed 801 --out data/driving
    bpfn search --teacher baseline --data data/driving --recover 0 --out front
    python benchmarks/pruned.py --front front --data data/driving --kitti data/kitti
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from commands import accuracy, bpfn
from tabulate import tabulate

from bpfn_cli.files import write_json
from bpfn_cli.metrics.statistics import paired
from bpfn_cli.profiling import describe_machine

RECIPE = ["data.augment.crop=4", "train.batch_size=4", "train.optimizer=muon", "train.lr=5e-4", "train.warmup_steps=20"]


def main() -> None:
    """Train, test and print the table."""
    options = _options()
    state = json.loads((options.front / "search.json").read_text())
    found = [one for one in state["networks"] if one["file"]]
    rows, result = [], {}
    for named in (one for one in state["networks"] if one["is_named"]):
        if options.variant and named["name"] not in options.variant:
            continue
        best = min((one for one in found if one["macs"] <= named["macs"]), key=lambda one: one["epe3d_m"])
        files = {named["name"]: _cut(named["name"], options), best["name"]: options.front / best["file"]}
        sizes = {named["name"]: named["name"], best["name"]: files[best["name"]]}
        errors = {
            name: [_errors(sizes[name], file, seed, options) for seed in options.seed] for name, file in files.items()
        }
        rows.append(_row(named, best, errors))
        result[named["name"]] = {"found": best["name"], "errors": errors}
    headers = ["variant", "found", "MACs", "parameters", "driving [m]", "difference", "KITTI [m]", "difference"]
    print(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    if options.out:
        write_json(options.out, {"machine": describe_machine(), "pairs": result})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--front", type=Path, required=True, help="folder of `bpfn search`")
    parser.add_argument("--data", type=Path, required=True, help="driving scenes")
    parser.add_argument("--kitti", type=Path, required=True, help="as of `bpfn prepare kitti`")
    parser.add_argument("--teacher", default="baseline")
    parser.add_argument("--variant", action="append", help="named one, repeatable; default: all of the search")
    parser.add_argument("--work", type=Path, default=Path("pruned"), help="folder of networks and runs")
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _cut(name: str, options: argparse.Namespace) -> Path:
    """A named variant with the most important channels of the teacher."""
    path: Path = options.work / f"{name}.safetensors"
    if not path.is_file():
        how = ("--importance", "taylor", "--recover", 0, "--data", options.data, "--out", path)
        bpfn("slim", "--teacher", options.teacher, "--variant", name, *how)
    return path


def _errors(sizes: str | Path, file: Path, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """EPE3D [m] on both kinds of scenes after the training."""
    run = options.work / "runs" / f"{file.stem}-seed{seed}"
    changes = [word for change in RECIPE for word in ("--set", change)]
    given = ("--data", options.data, "--points", options.points, "--epochs", 1, "--seed", seed)
    bpfn(
        "train",
        "--variant",
        sizes,
        "--checkpoint",
        file,
        *given,
        *changes,
        "--runs",
        run.parent,
        "--name",
        run.name,
        "--resume",
    )
    sets = {"driving": options.data, "kitti": options.kitti}
    return {
        name: accuracy(run, name, "--data", data, "--points", options.points)["epe3d"] for name, data in sets.items()
    }


def _row(named: dict[str, Any], best: dict[str, Any], errors: dict[str, list[dict[str, float]]]) -> list[str]:
    macs = " / ".join(f"{one['macs'] / 1e9:.2f} G" for one in (named, best))
    parameters = " / ".join(f"{one['parameters'] / 1e6:.2f} M" for one in (named, best))
    row = [named["name"], best["name"], macs, parameters]
    for data in ("driving", "kitti"):
        own, other = ([one[data] for one in errors[name]] for name in (named["name"], best["name"]))
        difference = paired([b - a for a, b in zip(own, other, strict=True)])
        row += [f"{statistics.mean(own):.3f} / {statistics.mean(other):.3f}"]
        interval = "" if difference.low is None else f" ({difference.low:+.4f} to {difference.high:+.4f})"
        row += [f"{difference.mean:+.4f}{interval}"]
    return row


if __name__ == "__main__":
    main()
