# SPDX-License-Identifier: MIT
"""Rates of float32 matrix products by MKL and by oneDNN, for the shapes of a forward pass and a training step."""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from tabulate import tabulate
from torch import Tensor

import bpfn_cli  # noqa: F401  (sets how threads wait)
from bpfn_cli.ops.products import _multiply_transposed

# Rows, products in a sum, columns.
CHUNKS = [(500, 2096, 128), (336, 3120, 128), (253, 4144, 256), (978, 1072, 64)]  # of `convolve_neighbors`
LAYERS = [(32768, 32, 32), (16384, 64, 64), (8192, 128, 128), (4096, 256, 256), (4096, 512, 192)]


def seconds(product: Callable[[], Tensor], rounds: int) -> float:
    """Median over `rounds` calls, after two that warm up."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return median(times[2:])


def rates(rows: int, products: int, columns: int, rounds: int) -> list[list[object]]:
    """GFLOP/s of a layer's product and of the two in its backward pass."""
    x, weight, gradient = torch.rand(rows, products), torch.rand(columns, products), torch.rand(rows, columns)
    cases: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "x @ weight.T": (lambda: x @ weight.t(), lambda: _multiply_transposed(x, weight)),
        "gradient @ weight": (lambda: gradient @ weight, lambda: _multiply_transposed(gradient, weight.t())),
        "gradient.T @ x": (lambda: gradient.t() @ x, lambda: _multiply_transposed(gradient.t(), x.t())),
    }
    flop = 2e-9 * rows * products * columns
    size = f"{rows} x {products} x {columns}"
    return [[size, name, *(round(flop / seconds(each, rounds)) for each in pair)] for name, pair in cases.items()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    rows = [row for shape in CHUNKS + LAYERS for row in rates(*shape, rounds)]
    print(tabulate(rows, ["rows x products x columns", "product", "MKL [GFLOP/s]", "oneDNN [GFLOP/s]"]))


if __name__ == "__main__":
    main()
