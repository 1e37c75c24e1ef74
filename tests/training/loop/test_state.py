# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from bpfn_cli.strategies import TermRecord
from bpfn_cli.training.loop.state import EpochLog


def term_record(weighted: float, share: float | None = None, weight: float = 2.0) -> TermRecord:
    return TermRecord(weighted, weighted / weight, weight, None, share, {}, {})


def test_epoch_log_weights_batches_by_their_samples() -> None:
    log = EpochLog()
    log.add({"supervised": term_record(1.0, 0.75), "hint": term_record(2.0, 0.25)}, 4)
    log.add({"supervised": term_record(6.0), "hint": term_record(0.0, weight=3.0)}, 1)
    figures = log.figures()
    assert figures["loss_supervised"] == 2.0
    assert figures["loss_hint"] == 1.6
    assert figures["raw_supervised"] == 1.0
    assert (figures["weight_supervised"], figures["weight_hint"]) == (2.0, 3.0)  # of the last step
    assert (figures["gradient_share_supervised"], figures["gradient_share_hint"]) == (0.75, 0.25)  # of the first
    assert log.total() == pytest.approx(3.6)


def test_epoch_log_averages_a_term_over_the_steps_that_had_it() -> None:
    log = EpochLog()
    log.add({"supervised": term_record(1.0), "augmented": term_record(4.0)}, 2)
    log.add({"supervised": term_record(1.0)}, 2)
    assert log.figures()["loss_augmented"] == 4.0
