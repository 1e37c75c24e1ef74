# SPDX-License-Identifier: MIT
"""Compare the C loops for farthest point sampling and nearest neighbors with NumPy, pykdtree and torch, on a CPU.

The clouds are rendered scenes. The implementations alternate; medians are printed.

    python benchmarks/geometry.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from bpfn_cli.device import keep_freed_memory
from bpfn_cli.ops import native
from bpfn_cli.ops.neighbors import knn_with_pykdtree, knn_with_torch
from bpfn_cli.ops.sampling import sample_with_numpy, sample_with_torch
from bpfn_cli.profiling.workload import synthetic_batch


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    batch = synthetic_batch(options.points, 1)
    cloud, other, quarter = batch.pc1, batch.pc2, options.points // 4
    coarse = cloud[:, :quarter].contiguous()
    searches = {
        f"32 of {options.points} for {options.points}": (cloud, other, 32),
        f"9 of {options.points} for the same": (cloud, cloud, 9),
        f"16 of {options.points} for {quarter}": (coarse, cloud, 16),
        f"3 of {quarter} for {options.points}": (cloud, coarse, 3),
    }
    print(
        f"{options.points} points, {options.threads} threads\n{'[ms]':<32}{'C loops':>10}{'library':>10}{'torch':>10}"
    )
    sample = [lambda f=f: f(cloud, quarter) for f in (native.sample, sample_with_numpy, sample_with_torch)]
    _print_row(f"sample {quarter} (library: NumPy)", sample, options.rounds)
    for name, words in searches.items():
        search = [lambda f=f, w=words: f(*w) for f in (native.neighbors, knn_with_pykdtree, knn_with_torch)]
        _print_row(name + " (pykdtree)" * name.startswith("32"), search, options.rounds)


def _print_row(name: str, works: Sequence[Callable[[], object]], rounds: int) -> None:
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 1):
        for work, found in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            found.append(1e3 * (time.perf_counter() - start))
    print(f"{name:<32}" + "".join(f"{statistics.median(found[1:]):>10.1f}" for found in times))


if __name__ == "__main__":
    main()
