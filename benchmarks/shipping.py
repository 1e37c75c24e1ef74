# SPDX-License-Identifier: MIT
"""Put the network of a run into `bpfn_cli/resources/weights`: float16 weights, and a card with measured results.

python benchmarks/shipping.py NAME --runs runs/a runs/b --kitti data/kitti --driving data/driving \
    --recipes configs/networks/NAME.yaml --title "..." --data "..." --limits "..."

The runs are the stages of one training, in order; the last one has the weights. What is evaluated is the float16 file.
"""

import argparse
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from bpfn_cli.cli.console import ConsoleProgress
from bpfn_cli.cores import usable_cores
from bpfn_cli.data.datasets import describe, open_dataset
from bpfn_cli.files import sha256_of, write_json
from bpfn_cli.metrics.evaluation import EVALUATION_SEED, evaluate_checkpoint
from bpfn_cli.models import load_checkpoint, save_checkpoint
from bpfn_cli.profiling import count_modules, describe_machine
from bpfn_cli.runs.folder import RunFolder
from bpfn_cli.shipped import FOLDER, STUDENT, Card, TestResult

POINTS = 8192  # of an evaluation
LICENSE = "MIT; trained on the project's own synthetic scenes alone"


def main() -> None:
    arguments = parsed()
    path = FOLDER / f"{arguments.name}.safetensors"
    network = load_checkpoint(arguments.runs[-1] / STUDENT)
    save_checkpoint(path, network.half(), made_by=f"bpfn weights {arguments.name}")
    records = [RunFolder.open(run).record for run in arguments.runs]
    results = {
        kind: measured(path, data, kind, arguments.out)
        for kind, data in (("kitti", arguments.kitti), ("driving", arguments.driving))
        if data is not None
    }
    counts = count_modules(network.variant, network.num_points)
    card = Card(
        variant=network.variant.name,
        title=arguments.title,
        license=LICENSE,
        data=arguments.data,
        recipes=tuple(arguments.recipes),
        commit=git_commit(),
        seeds=tuple(dict.fromkeys(one.seed for one in records)),
        samples=sum(one.epochs_done * (one.data.train_scenes - one.data.held_out_scenes) for one in records),
        hours=round(sum(one.train_seconds or 0 for one in records) / 3600, 1),
        machine=f"{usable_cores()} cores of {describe_machine()['cpu']}",
        parameters=counts.parameters.total(),
        macs=counts.macs.total(),
        points=network.num_points,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        limits=arguments.limits,
        sliced_from=arguments.sliced_from,
        results=results,
    )
    text = yaml.safe_dump(asdict(card), sort_keys=False, width=120)
    path.with_suffix(".yaml").write_text(
        f"# {arguments.name}: made by benchmarks/shipping.py\n{text}", encoding="utf-8"
    )
    print(text)


def measured(weights: Path, data: Path, kind: str, out: Path) -> TestResult:
    """Evaluate a file of weights; the whole result is also written to `out`."""
    dataset = open_dataset(data, "test")
    result = evaluate_checkpoint(
        weights,
        dataset,
        points=POINTS,
        seed=EVALUATION_SEED,
        device=torch.device("cpu"),
        progress=ConsoleProgress(),
    )
    write_json(out / f"{kind}-{weights.stem}.json", result.as_dict())
    row = result.model.model_dump(exclude={"name"})
    command = f"bpfn eval --checkpoint {weights.stem} --data data/{kind} --points {POINTS}"
    return TestResult(scenes=describe(dataset).partition(" in ")[0], command=command, points=POINTS, **row)


def git_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--kitti", type=Path)
    parser.add_argument("--driving", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    for text in ("title", "data", "limits"):
        parser.add_argument(f"--{text}", required=True)
    parser.add_argument("--sliced-from", help="name of the network that comes with bpfn")
    parser.add_argument("--recipes", nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
