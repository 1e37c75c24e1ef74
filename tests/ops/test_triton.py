# SPDX-License-Identifier: MIT
"""The Triton kernels against plain torch: on the card where there is one, else under Triton's CPU interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfn_cli.ops import backend, farthest_point_sample, gather, knn, neighborhood, neighbors, sampling

pytest.importorskip("triton", reason="Triton is not installed")

from bpfn_cli.ops.triton import neighborhood as triton_neighborhood
from bpfn_cli.ops.triton import neighbors as triton_neighbors
from bpfn_cli.ops.triton import sampling as triton_sampling
from bpfn_cli.ops.triton.neighborhood import propagate_max_backward_with_triton, propagate_max_with_triton
from bpfn_cli.ops.triton.neighbors import knn_with_triton
from bpfn_cli.ops.triton.sampling import sample_with_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def cloud(kind: str, count: int, seed: int = 0, batch: int = 2) -> Tensor:
    generator = np.random.default_rng(seed)
    points = generator.normal(0, 5, (batch, count, 3))
    if kind == "grid":
        points = generator.integers(0, 5, (batch, count, 3))
    elif kind == "duplicates":
        points = points[:, generator.integers(0, max(1, count // 7), count)]
    elif kind == "equal":
        points = np.full_like(points, 0.3)
    elif kind == "far":
        points += 1e4
    elif kind == "outlier":  # all other points fall into one cell of the lattice that sorts them
        points[:, count // 2] = 1e6
    return torch.from_numpy(points.astype(np.float32)).to(DEVICE)


KINDS = (
    "grid",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("random", "duplicates", "equal", "far", "outlier")),
)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_torch(kind: str) -> None:
    points = cloud(kind, 300)
    assert torch.equal(sample_with_triton(points, 40), sampling.sample_with_torch(points, 40))


@pytest.mark.parametrize("count", [1, 2, 5, 33, 64, 257])
@pytest.mark.slow
def test_samples_of_any_number_of_points(count: int) -> None:
    points = cloud("random", count, batch=3)
    found = sample_with_triton(points, min(count, 25))
    assert torch.equal(found, sampling.sample_with_torch(points, min(count, 25)))


@pytest.mark.parametrize("kind", ["random", "grid", "equal"])
@pytest.mark.slow
def test_samples_of_clouds_too_large_for_registers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sampling, "MOST_IN_REGISTERS", 64)
    monkeypatch.setattr(triton_sampling, "TILE", 64)
    points = cloud(kind, 200)
    assert torch.equal(sample_with_triton(points, 30), sampling.sample_with_torch(points, 30))


def nearest_in_full(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Nearest first, and the lower index first at equal float32 distances."""
    square = (queries[:, :, None] - points[:, None]) ** 2
    distance = square[..., 0] + square[..., 1] + square[..., 2]
    return distance.sort(dim=-1, stable=True).indices[..., :k]


@pytest.fixture
def large_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time by the program."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(triton_neighbors, "ROWS", 32)


@pytest.mark.parametrize(
    ("queries", "points", "k"),
    [
        (40, 100, 1),
        (20, 333, 3),
        (35, 64, 9),
        (20, 400, 16),
        (30, 200, 32),
        (3, 200, 50),
        (9, 64, 64),
        (40, 40, 40),
        (3, 1, 1),
        (1, 7, 7),
    ],
)
@pytest.mark.usefixtures("large_programs")
@pytest.mark.slow
def test_neighbors_of_any_sizes(queries: int, points: int, k: int) -> None:
    ours, others = cloud("random", queries, seed=1), cloud("random", points, seed=2)
    found = knn_with_triton(ours, others, k)
    assert found.dtype == torch.int64
    assert torch.equal(found, nearest_in_full(ours, others, k))
    assert torch.equal(found, neighbors.knn_with_torch(ours, others, k))


@pytest.mark.parametrize("kind", ["grid", "equal", "far", "outlier"])
@pytest.mark.usefixtures("large_programs")
@pytest.mark.slow
def test_neighbors_of_a_part_of_a_cloud(kind: str) -> None:
    points = cloud(kind, 400)
    queries = points[:, ::8]
    assert torch.equal(knn_with_triton(queries, points, 9), nearest_in_full(queries, points, 9))


@pytest.mark.usefixtures("large_programs")
@pytest.mark.slow
def test_neighbors_in_a_cloud_elsewhere() -> None:
    points, queries = cloud("random", 200), cloud("random", 40, seed=1) + 100
    assert torch.equal(knn_with_triton(queries, points, 16), nearest_in_full(queries, points, 16))


@pytest.mark.slow
def test_neighbors_with_programs_as_on_the_card() -> None:
    points, queries = cloud("random", 200), cloud("random", 13, seed=1)
    assert torch.equal(knn_with_triton(queries, points, 16), nearest_in_full(queries, points, 16))


def test_neighbors_of_a_tensor_that_is_not_contiguous() -> None:
    points = cloud("random", 60).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(knn_with_triton(points[:, ::4], points, 3), nearest_in_full(points[:, ::4], points, 3))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1, 0x7F800000, -0x00800000])
@pytest.mark.slow
def test_neighbors_of_points_that_are_not_finite_are_in_range(bits: int) -> None:
    """Bits of NaN, of the NaN that cards compute, of both signs, and of infinities."""
    value = torch.tensor(bits, dtype=torch.int32).view(torch.float32).to(DEVICE)
    assert not value.isfinite()
    points = cloud("random", 70)
    points[0, 5, 1] = value
    points[1] = value
    found = knn_with_triton(points[:, :20], points, 9)
    assert found.min() >= 0
    assert found.max() < 70


def propagation(rows: int, others: int, k: int, channels: int, outputs: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(rows, channels, generator=generator), torch.randn(others, channels, generator=generator)
    rows_of_other = torch.randint(0, others, (rows, k), generator=generator)
    weight = torch.randn(outputs, channels, generator=generator) / channels**0.5
    return [part.to(DEVICE) for part in (own, other, rows_of_other, weight)]


def outer_in_full(own: Tensor, other: Tensor, rows_of_other: Tensor, weight: Tensor) -> Tensor:
    """(R, k, D): what the maximum is taken of."""
    return F.linear(F.leaky_relu(own[:, None] + other[rows_of_other], 0.1), weight)


SIZES = [(50, 37, 5, 24, 40), (20, 40, 32, 32, 64), (130, 9, 3, 16, 16), (17, 20, 9, 40, 70), (1, 1, 1, 1, 1)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.slow
def test_propagation_is_that_of_torch(sizes: tuple[int, ...]) -> None:
    inputs = propagation(*sizes)
    largest, argmax = propagate_max_with_triton(*inputs, True)
    expected, _ = neighborhood.propagate_max_with_torch(*inputs, True)
    torch.testing.assert_close(largest, expected, rtol=1e-5, atol=1e-5)
    assert argmax.dtype == torch.uint8
    assert argmax.shape == largest.shape
    chosen = outer_in_full(*inputs).gather(1, argmax.long()[:, None])[:, 0]
    torch.testing.assert_close(chosen, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_propagation_without_argmax() -> None:
    inputs = propagation(20, 10, 4, 16, 24)
    largest, argmax = propagate_max_with_triton(*inputs, False)
    assert torch.equal(largest, propagate_max_with_triton(*inputs, True)[0])
    assert argmax.shape == (0,)


@pytest.mark.slow
def test_propagation_of_equal_neighbors_takes_the_first() -> None:
    own, other, rows_of_other, weight = propagation(20, 10, 1, 16, 16)
    _, argmax = propagate_max_with_triton(own, other, rows_of_other.expand(-1, 6), weight, True)
    assert not argmax.any()


@pytest.mark.slow
def test_propagation_of_many_neighbors_counts_beyond_a_byte() -> None:
    own, other, rows_of_other, weight = propagation(2, 257, 257, 16, 16)
    rows_of_other[:] = torch.arange(257)
    other[256], own[:], weight[:] = 100.0, 0.0, 1.0
    largest, argmax = propagate_max_with_triton(own, other, rows_of_other, weight, True)
    assert argmax.dtype == torch.int32
    assert argmax.eq(256).all()
    assert largest.eq(1600).all()


@pytest.mark.parametrize("neighbor", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_propagation_shows_nan(neighbor: int) -> None:
    own, other, rows_of_other, weight = propagation(5, 10, 4, 16, 16)
    rows_of_other[2] = torch.tensor([1, 2, 3, 4])
    other[rows_of_other[2, neighbor], 7] = torch.nan
    expected, _ = neighborhood.propagate_max_with_torch(own, other, rows_of_other, weight, False)
    largest, _ = propagate_max_with_triton(own, other, rows_of_other, weight, False)
    assert largest[2].isnan().all()
    assert torch.equal(largest.isnan(), expected.isnan())


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.slow
def test_gradients_of_propagation_are_those_of_the_formula(sizes: tuple[int, ...]) -> None:
    own, other, rows_of_other, weight = propagation(*sizes)
    received = torch.randn(sizes[0], sizes[4], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    _, argmax = propagate_max_with_triton(own, other, rows_of_other, weight, True)
    found = propagate_max_backward_with_triton(received, own, other, rows_of_other, weight, argmax)

    leaves = [part.double().requires_grad_() for part in (own, other, weight)]
    outer = outer_in_full(leaves[0], leaves[1], rows_of_other, leaves[2])
    outer.gather(1, argmax.long()[:, None])[:, 0].backward(received.double())
    for gradient, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_distances_are_launched_without_fused_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card they would round otherwise than the reference; the interpreter cannot show it."""
    options: list[dict[str, Any]] = []

    class Recorded:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *inputs, **named: (options.append(named), self.kernel[grid](*inputs, **named))[1]

    for module, names in (
        (triton_sampling, ("_sample_kernel", "_sample_large_kernel")),
        (triton_neighbors, ("_code_kernel", "_tile_kernel", "_nearest_kernel")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorded(getattr(module, name)))
    points = cloud("random", 9)
    sample_with_triton(points, 2)
    knn_with_triton(points, points, 2)
    monkeypatch.setattr(triton_sampling, "MOST_IN_REGISTERS", 4)
    sample_with_triton(points, 2)
    assert len(options) == 6
    assert not any(named["enable_fp_fusion"] for named in options)


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the Triton implementations called, in order, as if all tensors were on a card that has Triton."""
    called: list[str] = []

    def record(module: object, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *inputs: (called.append(name), original(*inputs))[1])

    record(triton_sampling, "sample_with_triton")
    record(triton_neighbors, "knn_with_triton")
    record(triton_neighborhood, "propagate_max_with_triton")
    record(triton_neighborhood, "propagate_max_backward_with_triton")
    monkeypatch.setattr(backend, "runs_triton", lambda *tensors: all(x.dtype == torch.float32 for x in tensors))
    return called


def call_all(points: Tensor, inputs: list[Tensor], k: int = 2) -> list[Tensor]:
    largest, argmax = torch.ops.bpfn.propagate_max(*inputs, True)
    backward = torch.ops.bpfn.propagate_max_backward(torch.ones_like(largest), *inputs, argmax)
    return [farthest_point_sample(points, 5), knn(points, points, k), largest, *backward]


def test_float32_on_cuda_takes_the_kernels(choice: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    points, inputs = cloud("random", 20), propagation(20, 10, 4, 16, 16)
    kernels = call_all(points, inputs)
    assert sorted(choice) == sorted(
        ["sample_with_triton", "knn_with_triton", "propagate_max_with_triton", "propagate_max_backward_with_triton"]
    )
    choice.clear()
    monkeypatch.setattr(backend, "runs_triton", lambda *tensors: False)
    plain = call_all(points, inputs)
    assert not choice
    for kernel, reference in zip(kernels, plain, strict=True):
        torch.testing.assert_close(kernel, reference, rtol=1e-5, atol=1e-5)


def test_what_the_kernels_cannot_take_stays_in_torch(choice: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [part.double() if part.is_floating_point() else part for part in propagation(20, 10, 4, 16, 16)]
    call_all(cloud("random", 20).double(), inputs)
    knn(cloud("random", 70), cloud("random", 70), 65)
    monkeypatch.setattr(triton_neighbors, "MOST_POINTS", 60)
    knn(cloud("random", 70), cloud("random", 70), 3)
    assert not choice


@pytest.mark.parametrize(
    ("device", "dtype", "has_triton", "expected"),
    [
        ("cuda", torch.float32, True, True),
        ("cuda", torch.float64, True, False),
        ("cuda", torch.float32, False, False),
        ("cpu", torch.float32, True, False),
    ],
)
def test_triton_runs_float32_on_cards_that_have_it(
    device: str, dtype: torch.dtype, has_triton: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_has_triton", lambda _: has_triton)
    tensor = SimpleNamespace(device=torch.device(device), dtype=dtype)
    assert backend.runs_triton(tensor) is expected


def run_alone(*arguments: str, **environment: str) -> str:
    """Standard output of a Python process in which Triton compiles instead of interpreting."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=variables | environment
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_ops_need_no_triton() -> None:
    run_alone(
        "-c",
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from bpfn_cli.ops import farthest_point_sample, knn, propagate_max\n"
        "points = torch.randn(1, 9, 3)\n"
        "assert knn(points, points, 2).shape == (1, 9, 2)\n"
        "assert farthest_point_sample(points, 2).shape == (1, 2)\n"
        "own = torch.randn(9, 4, requires_grad=True)\n"
        "propagate_max(own, own, knn(points, points, 2)[0], torch.randn(5, 4)).sum().backward()\n"
        "assert not [name for name in sys.modules if name.startswith('bpfn_cli.ops.triton')]\n",
    )


@pytest.mark.slow
def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    output = run_alone(
        str(Path(__file__).with_name("compile_kernels.py")), "--quick", "--json", TRITON_CACHE_DIR=str(tmp_path)
    )
    kernels = json.loads(output)
    if not kernels:
        pytest.skip("no ptxas")
    assert len(kernels) == 8
    for name, kernel in kernels.items():
        assert kernel["stack_bytes"] <= 64, f"{name}: registers spill"
        if name.startswith(("_sample", "_nearest")):
            assert not kernel["fuses_or_flushes"], f"{name}: distances would be rounded otherwise than by the reference"
        if name.startswith("_propagate"):
            assert not kernel["tensor_cores"], f"{name}: products would be TF32"


@pytest.mark.gpu
@needs_card
def test_samples_and_neighbors_on_a_card(choice: list[str]) -> None:
    points, queries = cloud("random", 8192, batch=4), cloud("random", 8192, seed=1, batch=4)
    chosen, near = farthest_point_sample(points, 2048), knn(queries, points, 32)
    assert choice == ["sample_with_triton", "knn_with_triton"]
    assert torch.equal(chosen.cpu(), sampling.sample_with_numpy(points.cpu(), 2048))
    tree = neighbors.knn_on_cpu(queries.cpu(), points.cpu(), 32).to(DEVICE)
    distances = [(gather(points, found) - queries[:, :, None]).norm(dim=-1) for found in (near, tree)]
    torch.testing.assert_close(*distances, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_propagation_on_a_card(width: int, choice: list[str]) -> None:
    rows = 8192 * 32 // width
    inputs = propagation(rows, rows, 32, width, width)
    received = torch.randn(rows, width, device=DEVICE)
    leaves = [part.requires_grad_() if part.is_floating_point() else part for part in inputs]
    largest, argmax = torch.ops.bpfn.propagate_max(*leaves, True)
    largest.backward(received)
    assert choice == ["propagate_max_with_triton", "propagate_max_backward_with_triton"]
    own, other, rows_of_other, weight = (part.detach().cpu() for part in inputs)
    expected, _ = neighborhood.propagate_max_with_torch(own, other, rows_of_other, weight, False)
    torch.testing.assert_close(largest.detach().cpu(), expected, rtol=1e-4, atol=1e-4)
    gradients = neighborhood.propagate_max_backward_with_torch(
        received.cpu(), own, other, rows_of_other, weight, argmax.cpu()
    )
    for leaf, gradient in zip((leaves[0], leaves[1], leaves[3]), gradients, strict=True):
        scale = float(gradient.abs().max())
        torch.testing.assert_close(leaf.grad.cpu(), gradient, rtol=1e-4, atol=1e-5 * scale)
