# SPDX-License-Identifier: MIT
"""What is measured and how it adds up; no test looks at how long something took."""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from statistics import median

import pytest
from tiny_world import LEAST, TINY

from bpfn_cli.errors import OutOfMemoryError
from bpfn_cli.models.reference import ReferenceNetwork
from bpfn_cli.precision import Precision
from bpfn_cli.profiling import Latency, latency, measure_latency
from bpfn_cli.profiling.workload import Case, Workload

CASE = Case(TINY, LEAST)
INFERENCE = {"geometry", "encoder", "level3", "level2", "level1", "level0", "other"}


@pytest.fixture(autouse=True)
def small_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "GEMM_SIZE", 64)


def measured(case: Case = CASE, **options: bool) -> Latency:
    return measure_latency(case, rounds=2, memory=False, **options)


def test_clock_gives_each_moment_to_the_innermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.accumulate([0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128])
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    clock = latency._Clock(cuda=False)  # 1 ms until the first stage
    with clock.stage("level1"):  # 2 ms
        with clock.stage("geometry"):  # 4 ms
            pass  # 8 ms of level1
        with clock.stage("geometry"):  # 16 ms
            pass  # 32 ms of level1
    assert clock.stop() == pytest.approx({"other": 1 + 64, "level1": 2 + 8 + 32, "geometry": 4 + 16})


def test_figures_follow_from_the_times() -> None:
    one = measured(Case(TINY, LEAST, batch=2))
    assert (one.variant, one.points, one.batch, one.device, one.training) == ("tiny", LEAST, 2, "cpu", False)
    for path in (one.fast, one.plain):
        assert path is not None
        low, high = sorted(path.times_ms)
        assert path.median_ms == pytest.approx((low + high) / 2)
        assert path.p90_ms == pytest.approx(low + 0.9 * (high - low))
        assert path.pairs_per_s == pytest.approx(2000 / path.median_ms)
        assert path.peak_memory_mb is None
    assert one.gemm_gflops == pytest.approx(2 * 64**3 / (median(one.gemm_times_ms) * 1e6))
    assert one.torch_gemm_gflops == pytest.approx(2 * 64**3 / (median(one.torch_gemm_times_ms) * 1e6))
    rate = max(one.gemm_gflops, one.torch_gemm_gflops)
    assert one.floor_ms == pytest.approx(1e3 * one.matrix_gflop / rate + one.stages_ms["geometry"])


def test_reduced_precision_is_that_of_the_fast_path_and_has_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr("bpfn_cli.profiling.workload.matrix_precision", lambda one: taken.append(one) or nullcontext())
    one = measured(Case(TINY, LEAST, precision=Precision.bf16))
    assert (one.precision, one.floor_ms) == ("bf16", None)
    assert taken == [Precision.bf16, Precision.float32] * 3  # fast, plain: to warm up, and two rounds


def test_stages_sum_to_the_whole() -> None:
    one = measured(plain=False)
    assert set(one.stages_ms) == INFERENCE
    for done, whole in enumerate(one.fast.times_ms):
        assert sum(times[done] for times in one.stage_times_ms.values()) == pytest.approx(whole)
    assert sum(one.stages_ms.values()) == pytest.approx(one.fast.median_ms)  # of two rounds, a median is the mean
    assert min(one.stages_ms.values()) > 0


def test_training_step_has_a_backward_stage() -> None:
    assert set(measured(Case(TINY, LEAST, training=True), plain=False).stages_ms) == INFERENCE | {"backward"}


def test_paths_take_turns_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_ones: list[bool] = []
    monkeypatch.setattr(Workload, "run", lambda work: plain_ones.append(isinstance(work.model, ReferenceNetwork)))
    monkeypatch.setattr(latency, "STAGES", ("other",))
    with pytest.raises(KeyError, match="geometry"):  # of passes that do nothing
        measured()
    assert plain_ones == 3 * [False, True]


def test_plain_path_is_left_out_where_it_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MOST_PLAIN_POINTS", LEAST - 1)
    one = measured()
    assert one.plain is None
    assert one.plain_skipped is not None
    assert one.plain_skipped.startswith(f"more than {LEAST - 1} points")
    assert measured(plain=False).plain_skipped is None


def test_path_that_does_not_fit_in_memory_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def peaks(case: Case, *, plain: bool, keep_freed: bool) -> list[float]:
        if plain is too_large:
            raise OutOfMemoryError("too large")
        assert keep_freed
        return [3.0, 1.0, 2.0]

    monkeypatch.setattr(latency, "peak_memories_mb", peaks)
    too_large, steps = True, []
    one = measure_latency(CASE, rounds=1, keep_freed=True, progress=lambda *step: steps.append(step))
    assert (one.plain, one.plain_skipped, one.fast.peak_memory_mb) == (None, "out of memory", 2.0)
    assert one.fast.peak_memories_mb == [3.0, 1.0, 2.0]
    assert steps == [(done, 4) for done in (1, 2, 3, 4)]
    too_large = False
    with pytest.raises(OutOfMemoryError):
        measure_latency(CASE, rounds=1, keep_freed=True)


def test_machine_is_described() -> None:
    machine = latency.describe_machine()
    assert machine["cpu"]
    assert machine["threads"] >= 1
    assert machine["cores"] >= 1
