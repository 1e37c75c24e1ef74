# SPDX-License-Identifier: MIT
"""The supervised loss by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import G, S, toy

from bpfn_cli.losses import build_losses, supervised_loss
from bpfn_cli.losses.supervised import measured
from bpfn_cli.models import BASELINE
from bpfn_cli.structures import FlowBatch


def test_points_without_a_known_flow_do_not_count() -> None:
    flows = [S, S[:, :1], S[:, :1], S[:, :1]]
    first, second = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    # Errors of S against G: 0.1, 0.1; the first point is at all levels, the second at level 0 alone.
    for valid, expected in ((None, 0.02 * 0.2 + 0.28 * 0.1), (first, 0.3 * 0.1), (second, 0.02 * 0.1)):
        batch = FlowBatch(S, S, G, ("a",), valid=valid)
        assert float(supervised_loss(toy(flows), batch)) == pytest.approx(expected, rel=1e-5)


def test_supervised_by_hand() -> None:
    # 4, 3, 2, 1 points off by 1, 2, 3, 4 m along x: 0.02*4 + 0.04*6 + 0.08*6 + 0.16*4 = 1.44.
    flow = torch.zeros(2, 4, 3)
    flow[:, :, 1] = torch.arange(4.0)
    order = {1: torch.tensor([[3, 0, 1], [3, 0, 1]]), 2: torch.tensor([[2, 0], [2, 0]]), 3: torch.tensor([[1], [1]])}
    true = [0.0, 1, 2, 3], [3.0, 0, 1], [1.0, 3], [3.0]
    flows = []
    for level, rows in enumerate(true):
        at_level = torch.zeros(2, len(rows), 3)
        at_level[:, :, 1] = torch.tensor(rows)
        at_level[:, :, 0] = level + 1
        flows.append(at_level)
    output = replace(toy(flows), sample_indices1=order)
    batch = FlowBatch(flow, flow, flow, ("a", "b"))
    assert float(supervised_loss(output, batch)) == pytest.approx(1.44)


def test_smooth_l1_by_hand_is_squared_below_a_metre_and_the_error_stays_in_metres() -> None:
    # S errs by 0.1 m at both points: 0.005 each, at all levels; an error of 2 m counts 1.5.
    batch = FlowBatch(S, S, G, ("a",))
    found = build_losses(["none"], BASELINE, None, {"supervised_norm": "smooth_l1"}).measure(toy([S] * 4), None, batch)
    assert float(found["supervised"].value) == pytest.approx(0.3 * 0.01, rel=1e-5)
    assert float(found["supervised"].figures["epe3d"]) == pytest.approx(0.1)
    far = G + torch.tensor([2.0, 0.0, 0.0])
    assert float(supervised_loss(toy([far] * 4), batch, "smooth_l1")) == pytest.approx(0.3 * 3.0)


def test_reduction_of_an_error_of_3_cm_everywhere() -> None:
    errors = {level: torch.full((2, count), 0.03) for level, count in enumerate((8192, 2048, 512, 256))}
    parts = [float(measured({level: error}).value) for level, error in errors.items()]
    assert float(measured(errors).value) == pytest.approx(9.83, abs=0.005)
    assert [round(part / sum(parts), 3) for part in parts] == [0.5, 0.25, 0.125, 0.125]
