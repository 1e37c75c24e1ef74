# SPDX-License-Identifier: MIT
"""Which scenes teach a network most about KITTI: train it on scenes of different kinds, and test it on real ones.

Each training starts from random weights and sees the same number of samples. The test scenes are those of KITTI that
papers do not test on, all points at once. What is finished is not repeated: the command goes on where it was stopped.

    python benchmarks/ablation.py --data data/kitti --work ablation
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from commands import accuracy, bpfn
from tabulate import tabulate

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.files import write_json
from bpfn_cli.profiling import describe_machine

KINDS = {
    "driving": ["--live"],
    "driving, 100 scenes again and again": [],
    "driving, ground kept": ["--live", "--ground"],
    "driving, hidden points removed": ["--live", "--hidden", "removed"],
    "driving, hidden points vanish": ["--live", "--hidden", "vanish"],
    "driving, noise of 0.5 px": ["--live", "--disparity-noise", "0.5"],
    "rooms": ["--style", "rooms"],
}  # name -> options of `bpfn synth`
FEW = 100
RECIPE = ["data.augment.crop=4", "train.batch_size=4", "train.optimizer=muon", "train.lr=1e-3", "train.warmup_steps=30"]
TEST = ["--split", "all", "--points", 8192]


def main() -> None:
    """Train, test and print the table."""
    options = _options()
    found: dict[str, list[dict[str, Any]]] = {}
    test = _untested_scenes(options.data, options.work / "kitti")
    for seed in range(options.seeds):
        for kind in options.kind or KINDS:
            run = _train(kind, seed, options)
            found.setdefault(kind, []).append(accuracy(run, "ablation", "--data", test, *TEST))
    headers = ["scenes", "EPE3D [m]", "of each seed", "Acc3DR"]
    print(
        tabulate(
            [_row(kind, rows) for kind, rows in found.items()], headers=headers, tablefmt="pipe", disable_numparse=True
        )
    )
    if options.out:
        write_json(options.out, {"machine": describe_machine(), "samples": options.samples, "kinds": found})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="KITTI, as of `bpfn prepare kitti`")
    parser.add_argument("--work", type=Path, default=Path("ablation"), help="folder of scenes and runs")
    parser.add_argument("--kind", action="append", choices=KINDS, help="repeatable; default: all")
    parser.add_argument("--variant", default="weightnet4")
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=1600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _train(kind: str, seed: int, options: argparse.Namespace) -> Path:
    """Train on scenes of one kind, or go on with it. Returns the run folder."""
    name = "-".join("".join(c if c.isalnum() else " " for c in kind).split())
    stored, scenes = "--live" not in KINDS[kind], options.work / "data" / name
    epochs = options.samples // FEW if stored and kind != "rooms" else 1
    bpfn("synth", *KINDS[kind], "--train", options.samples // epochs, "--val", 8, "--seed", 700, "--out", scenes)
    run = options.work / "runs" / f"{name}-seed{seed}"
    changes = [word for change in RECIPE for word in ("--set", change)]
    given = ("--variant", options.variant, "--points", options.points, "--epochs", epochs, "--seed", seed)
    bpfn("train", "--data", scenes, *given, *changes, "--runs", run.parent, "--name", run.name, "--resume")
    return run


def _untested_scenes(kitti: Path, folder: Path) -> Path:
    """A folder with links to the scenes that papers do not test on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in open_dataset(kitti, "train").names:
        if not (folder / name).exists():
            (folder / name).symlink_to((kitti / name).resolve())
    return folder


def _row(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    errors = [row["epe3d"] for row in rows]
    relaxed = statistics.mean(row["acc3d_relax"] for row in rows)
    return [kind, f"{statistics.mean(errors):.3f}", ", ".join(f"{one:.3f}" for one in errors), f"{relaxed:.1%}"]


if __name__ == "__main__":
    main()
