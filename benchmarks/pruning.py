# SPDX-License-Identifier: MIT
"""How well a network keeps its accuracy when channels are cut, without any training afterwards.

bpfn synth --train 64 --val 64 --out data/driving
python benchmarks/pruning.py --data data/driving --teacher baseline

For named variants and sizes that `bpfn slim --target-macs` chooses: EPE3D on the test scenes when the channels that
are kept are the first ones, those with the largest weights, and those with the largest effect on the error.
"""

import argparse
from pathlib import Path

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.models import VARIANTS, Variant, load_checkpoint
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning.prune import Pruner, mean_epe3d
from bpfn_cli.shipped import find_weights
from bpfn_cli.structures import FlowBatch

POINTS, BATCH = 2048, 4
IMPORTANCES = ("first", "l1", "taylor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", default="baseline")
    parser.add_argument("--variants", nargs="*", default=["weightnet8", "weightnet4", "weightnet48"])
    parser.add_argument("--giga-macs", nargs="*", type=float, default=[10, 7.37, 5, 3.2])
    parser.add_argument("--scenes", type=int, default=48)
    arguments = parser.parse_args()
    teacher = load_checkpoint(find_weights(Path(arguments.teacher)))
    used, tested = (batches(arguments.data, split, arguments.scenes) for split in ("train", "val"))
    print(f"teacher: EPE3D {mean_epe3d(teacher, tested):.3f} m on {arguments.scenes} scenes, {POINTS} points")
    pruners = {importance: Pruner(teacher) for importance in IMPORTANCES}
    for importance, pruner in pruners.items():
        pruner.order(importance, used)  # type: ignore[arg-type]
    best = pruners["taylor"]
    best.measure(used[:2])
    fitted = [best.fit(lambda variant: cost_of(variant).macs, 1e9 * target) for target in arguments.giga_macs]
    print(f"{'sizes':12} {'parameters':>10} {'MACs':>7} " + " ".join(f"{name:>7}" for name in IMPORTANCES))
    for name, variant in [(name, VARIANTS[name]) for name in arguments.variants] + [("fitted", one) for one in fitted]:
        print(row(name, variant, pruners, tested), flush=True)


def row(name: str, variant: Variant, pruners: dict[str, Pruner], tested: list[FlowBatch]) -> str:
    errors = (mean_epe3d(pruner.cut(variant), tested) for pruner in pruners.values())
    cost = cost_of(variant)
    return f"{name:12} {cost.parameters:>10,} {cost.macs / 1e9:>5.2f} G " + " ".join(
        f"{error:>5.3f} m" for error in errors
    )


def batches(data: Path, split: str, count: int) -> list[FlowBatch]:
    dataset = open_dataset(data, split)
    return list(evaluation_batches(dataset, range(count), points=POINTS, batch_size=BATCH, seed=0))


if __name__ == "__main__":
    main()
