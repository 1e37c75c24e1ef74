# SPDX-License-Identifier: MIT
"""FLOPs of the fast path: torch's counter, and what our own operations add to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_world import LEAST, TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bpfn_cli.models.variants import VARIANTS
from bpfn_cli.ops import convolve_neighbors, propagate_max
from bpfn_cli.profiling.flops import FORMULAS, count_matrix_flops
from bpfn_cli.profiling.workload import Case, Workload

ROWS, K, CHANNELS, OUTPUTS, MIDDLE = 7, 5, 3, 4, 2
NEIGHBORS = torch.randint(ROWS, (ROWS, K), generator=torch.Generator().manual_seed(0))


def test_baseline_at_8192_points_is_the_measured_floor() -> None:
    assert count_matrix_flops(Case(VARIANTS["baseline"])) / 1e9 == pytest.approx(27, abs=1)
    assert count_matrix_flops(Case(VARIANTS["weightnet4"])) / 1e9 == pytest.approx(14.2, abs=0.1)


def test_pairs_of_a_batch_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    one, three = (count_matrix_flops(Case(TINY, LEAST, batch=batch)) for batch in (1, 3))
    assert three == 3 * one
    monkeypatch.setenv("BPFN_PLAIN", "1")  # the fast path is counted nevertheless
    assert count_matrix_flops(Case(TINY, LEAST)) == one


def test_training_multiplies_about_as_much_twice_again() -> None:
    forward, step = (count_matrix_flops(Case(TINY, LEAST, training=training)) for training in (False, True))
    assert 2 * forward < step < 3.5 * forward


def counted(function: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        function()
    return counter.get_total_flops()


def values(*shape: int) -> torch.Tensor:
    return torch.rand(shape, requires_grad=True)


def test_propagate_max_by_hand() -> None:
    arguments = (values(ROWS, CHANNELS), values(ROWS, CHANNELS), NEIGHBORS, values(OUTPUTS, CHANNELS))
    assert counted(lambda: propagate_max(*arguments)) == 2 * 7 * 5 * 3 * 4
    # Backward, each of 7 x 4 maxima adds a row of 3 to the gradient of the weights and one to that of the input.
    assert counted(lambda: propagate_max(*arguments).sum().backward()) == 840 + 2 * (2 * 7 * 4 * 3)


def test_convolution_is_what_torch_counts_in_plain_operations() -> None:
    offsets, features, weights = values(ROWS, K, 3), values(ROWS, CHANNELS), values(ROWS, K, MIDDLE)
    matrix = values(MIDDLE, 3 + CHANNELS, OUTPUTS)

    def ours() -> torch.Tensor:
        return convolve_neighbors(offsets, features, weights, NEIGHBORS, matrix)

    def plain() -> torch.Tensor:
        grouped = torch.cat([offsets, F.embedding(NEIGHBORS, features)], dim=-1)
        return (weights.transpose(1, 2) @ grouped).flatten(1) @ matrix.flatten(0, 1)

    torch.testing.assert_close(ours(), plain())
    assert counted(ours) == counted(plain) == 2 * 7 * 5 * 2 * 6 + 2 * 7 * 2 * 6 * 4
    again = 2 * 7 * 5 * 2 * 6  # the aggregate, which is not kept for the backward pass
    assert counted(lambda: ours().sum().backward()) == counted(lambda: plain().sum().backward()) + again


def test_no_operation_of_ours_is_left_out() -> None:
    met = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            met.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    work = Workload(Case(TINY, LEAST, training=True))
    with Record():
        work.run()
    ours = {operation for operation in met if str(operation).startswith("bpfn.")}
    assert ours >= FORMULAS.keys()
    compare = {torch.ops.bpfn.knn, torch.ops.bpfn.farthest_point_sample}
    assert ours - FORMULAS.keys() == compare
