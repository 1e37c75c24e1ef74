# SPDX-License-Identifier: MIT
"""Compare a training step (forward, supervised loss, backward) with and without torch.compile.

The two alternate. Printed are medians, the median ratio of consecutive steps, the time of the first compiled step (with
an empty cache), and the difference of its gradient relative to the gradient's norm.

    python benchmarks/compiling.py
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time

import torch

from bpfn_cli.device import keep_freed_memory, resolve_device
from bpfn_cli.losses import supervised_loss
from bpfn_cli.models import BiPointFlowNet, build_model
from bpfn_cli.profiling.workload import synthetic_batch
from bpfn_cli.structures import FlowBatch


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", nargs="+", default=["weightnet48", "baseline"])
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = resolve_device(options.device)
    batch = synthetic_batch(options.points, options.batch).to(device)
    words = f"batch {options.batch}, {options.points} points, {device}, {options.threads} threads"
    print(f"{words}, torch {torch.__version__}")
    print(f"{'variant':<14}{'eager [s]':>12}{'compiled [s]':>14}{'ratio':>8}{'first [s]':>11}{'gradient':>11}")
    for name in options.variant:
        torch.manual_seed(0)
        plain = build_model(name, options.points).to(device).train()
        compiled = copy.deepcopy(plain)
        compiled.compile()
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            first = _step(compiled, batch)
        _step(plain, batch)
        found, expected = _gradient(compiled), _gradient(plain)
        apart = float((found - expected).norm() / expected.norm())
        pairs = [(_step(plain, batch), _step(compiled, batch)) for _ in range(options.rounds)]
        before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(there / here for here, there in pairs)
        print(f"{name:<14}{before:>12.3f}{after:>14.3f}{ratio:>8.2f}{first:>11.0f}{apart:>11.1e}")


def _step(network: BiPointFlowNet, batch: FlowBatch) -> float:
    start = time.perf_counter()
    network.zero_grad()
    supervised_loss(network(batch.pc1, batch.pc2), batch).backward()
    if batch.pc1.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _gradient(network: BiPointFlowNet) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
