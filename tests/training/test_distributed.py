# SPDX-License-Identifier: MIT
"""Two processes on a CPU (gloo) that share each batch train like one process with the whole batch."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_pairs import (
    NAMES,
    build_strategy,
    call_in_pair,
    digest_of_weights,
    gradients_of_a_step,
    new_norms,
    poisoned_step,
    resume_lines,
    statistics_of_a_step,
    train_lines,
    train_until_one_stops,
    whole_batch,
)
from small_runs import CPU, digest, edit_record, metrics_of, record_of, resume_run, small_recipe, train_run
from tiny_world import TINY, tiny_network

from bpfn_cli import distributed
from bpfn_cli.errors import DataError, Interrupted, UsageError
from bpfn_cli.losses import LOSSES
from bpfn_cli.models import Variant, save_checkpoint
from bpfn_cli.strategies import STRATEGIES

CASES = [("plain", (name,)) for name in LOSSES] + [
    (name, ("none",) if name in ("online", "netaug", "self") else ("basic", "hint")) for name in STRATEGIES
]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def relative_difference(found: Any, expected: Any) -> float:
    """The norm of the difference, relative to that of the expected values."""
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-12))


def check_same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-3) -> None:
    assert relative_difference(found["gradient"], expected["gradient"]) < tolerance
    assert np.allclose(found["kappas"], expected["kappas"], rtol=1e-3)
    for kind in ("teacher", "critic"):
        for one, other in zip(found[kind], expected[kind], strict=True):
            assert relative_difference(one, other) < 1e-3
    assert found["figures"].keys() == expected["figures"].keys()
    for key, value in expected["figures"].items():
        if "_phi_q" not in key:  # quantiles of what one process sees
            assert found["figures"][key] == pytest.approx(value, rel=2e-3, abs=1e-6), key


@pytest.mark.parametrize(("kind", "losses"), CASES, ids=lambda case: case if isinstance(case, str) else "+".join(case))
def test_gradients_and_terms_of_two_processes_equal_those_of_the_whole_batch(
    kind: str, losses: tuple[str, ...]
) -> None:
    expected = gradients_of_a_step(kind, losses, len(NAMES))
    for found in call_in_pair(gradients_of_a_step, kind, losses, len(NAMES)):
        # A channel of the second student is constant: rounding decides on which side of the kink it lies.
        check_same(found, expected, 5e-3 if kind == "online" else 1e-3)


def test_process_without_a_sample_adds_nothing() -> None:
    expected = gradients_of_a_step("plain", ("hint",), 1)
    for found in call_in_pair(gradients_of_a_step, "plain", ("hint",), 1):
        check_same(found, expected)


def test_gradient_of_an_accumulated_batch_is_the_mean_over_its_parts() -> None:
    """Of parts of 1 and 2 samples, each with its own batch statistics."""
    found = gradients_of_a_step("plain", ("basic",), len(NAMES), 2)
    parts = []
    for start, end in ((0, 1), (1, 3)):
        alone = build_strategy("plain", ("basic",))
        alone.step(whole_batch().of_samples(start, end), 1e-3)
        trained = [parameter.grad for group in alone.parameter_groups() for parameter in group]
        parts.append(np.concatenate([np.zeros(1) if g is None else g.flatten().numpy() for g in trained]))
    assert relative_difference(found["gradient"], (parts[0] + 2 * parts[1]) / 3) < 1e-5


def test_two_processes_split_a_batch_into_the_same_number_of_parts() -> None:
    """Each has one sample in the first part and none or one in the second: as many parts in both."""
    first, second = call_in_pair(gradients_of_a_step, "plain", ("basic",), len(NAMES), 2)
    assert relative_difference(first["gradient"], second["gradient"]) == 0


@pytest.mark.parametrize("variant", [TINY, replace(TINY, bn=True)], ids=["published", "with batch norm"])
def test_batch_norm_sees_the_whole_batch(variant: Variant) -> None:
    alone = build_strategy("plain", ("none",), variant)
    alone.step(whole_batch(), 1e-3)
    expected = dict(alone.student.named_buffers())
    for found in call_in_pair(statistics_of_a_step, variant):
        assert found.keys() == expected.keys() and len(expected) > 3
        for name, value in found.items():
            assert np.allclose(value, expected[name].numpy(), rtol=1e-4, atol=1e-5), name


def test_nan_sample_of_one_process_is_skipped_by_both() -> None:
    (said, kept), (other, also_kept) = call_in_pair(poisoned_step)
    assert said == other
    assert "term supervised is nan for the samples 000000" in said
    assert kept and also_kept


# --- whole trainings ------------------------------------------------------------------------------------


RECIPE = small_recipe(loss=["hint", "adversarial"], train={"batch_size": 2, "epochs": 2}, data={"holdout": 0.2})


@pytest.fixture(scope="module")
def together(things: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of two processes."""
    runs = tmp_path_factory.mktemp("together") / "runs"
    main, other = call_in_pair(train_lines, things, runs, RECIPE, {"teacher": teacher})
    assert main[-1].startswith("tiny: EPE3D")
    assert other[-1] == main[-1]  # the figures of the one that evaluated
    return runs


def test_training_of_two_processes_has_one_writer_and_all_terms(
    things: Path, teacher: Path, together: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "alone"
    train_run(things, runs, RECIPE, teacher=teacher)
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in runs.iterdir())
    assert record_of(together)["state"] == "finished"
    assert record_of(together)["versions"]["processes"] == 2
    for one, other in zip(metrics_of(together), metrics_of(runs), strict=True):
        assert one.keys() == other.keys()
        assert one["loss_supervised"] == pytest.approx(other["loss_supervised"], rel=0.02)
        assert one["validation_epe3d"] == pytest.approx(other["validation_epe3d"], rel=0.02)


def test_new_batch_norms_start_alike_in_all_processes(things: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, tiny_network(5))
    normalized = small_recipe(variant={"base": str(start), "bn": True}, initial=str(start), train={"batch_size": 2})
    first, second = call_in_pair(new_norms, things, tmp_path / "runs", normalized)
    assert all(np.array_equal(value, second[name]) for name, value in first.items())
    assert not (first["level0.composed_module.1.weight"] == 1).any()


def test_all_processes_end_with_the_same_weights(things: Path, tmp_path: Path) -> None:
    recipe = small_recipe(loss=["none"], train={"batch_size": 2, "epochs": 2})
    first, second = call_in_pair(digest_of_weights, things, tmp_path / "runs", recipe)
    assert first == second


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_stop_of_one_process_stops_both_and_they_resume_bit_for_bit(
    things: Path, teacher: Path, together: Path, tmp_path: Path, steps: int
) -> None:
    runs = tmp_path / "runs"
    for error in call_in_pair(train_until_one_stops, things, runs, RECIPE, {"teacher": teacher}, steps):
        assert isinstance(error, Interrupted)
        assert (error.reason, error.exit_code) == ("enough", 143)
    assert record_of(runs)["state"] == "interrupted"
    call_in_pair(resume_lines, runs, 10**6)
    assert digest(runs) == digest(together)
    assert metrics_of(runs) == metrics_of(together)


def test_scene_that_one_process_cannot_read_ends_both(things: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(things, tmp_path / "things"))
    recipe = small_recipe(
        train={"batch_size": 2, "checkpoint_minutes": 100, "validate_every": 3}, data={"holdout": 0.01}
    )
    bad = sorted(data.glob("train/*"))[3] / "pc2.npy"
    bad.write_bytes(bad.read_bytes()[:-4] + b"\xff\xff\xff\xff")  # a NaN
    for error in call_in_pair(train_lines, data, tmp_path / "runs", recipe, {}):
        assert isinstance(error, DataError)
        assert bad.parent.name in str(error)


def test_another_number_of_processes_is_a_difference(together: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(together, tmp_path / "runs", symlinks=True))
    edit_record(runs, state="running")
    with pytest.raises(UsageError, match="processes 2, now 1"):
        resume_run(runs)


# --- being started by others ----------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 1])
def test_processes_that_do_not_meet_are_reported(own: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "LONGEST_SEARCH", timedelta(seconds=1))
    with socket.socket() as other:  # takes the port, and says nothing
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        environment = {"RANK": str(own), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: the processes .* do not meet there"):
            distributed.joined(CPU).__enter__()
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UsageError, match="MASTER_PORT expected, but not set"):
        distributed.joined(CPU).__enter__()
