# SPDX-License-Identifier: MIT
"""Two processes on a CPU (gloo) that share each batch are one process with the whole batch."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import NAME, about, brief, digest, experiment, gone_on, metrics
from pairs import (
    CPU,
    NAMES,
    gone_on_together,
    gradients_of_a_step,
    made,
    pair,
    poisoned_step,
    statistics_of_a_step,
    trained,
    trained_for,
    weights_of,
    whole_batch,
)
from tiny_world import TINY, Quiet

from bpfn_cli import distributed
from bpfn_cli.errors import DataError, Interrupted, UsageError
from bpfn_cli.losses import LOSSES
from bpfn_cli.models import Variant
from bpfn_cli.strategies import STRATEGIES
from bpfn_cli.training import run_experiment

CASES = [("plain", (name,)) for name in LOSSES] + [
    (name, ("none",) if name in ("online", "netaug", "self") else ("basic", "hint")) for name in STRATEGIES
]

pytestmark = pytest.mark.usefixtures("one_thread")


def apart(found: Any, expected: Any) -> float:
    """The length of the difference over that of what is expected."""
    one, other = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-12))


def same(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-3) -> None:
    assert apart(found["gradient"], expected["gradient"]) < tolerance
    assert np.allclose(found["kappas"], expected["kappas"], rtol=1e-3)
    for kind in ("teacher", "critic"):
        for one, other in zip(found[kind], expected[kind], strict=True):
            assert apart(one, other) < 1e-3
    assert found["figures"].keys() == expected["figures"].keys()
    for key, value in expected["figures"].items():
        if "_phi_q" not in key:  # quantiles of what one process sees
            assert found["figures"][key] == pytest.approx(value, rel=2e-3, abs=1e-6), key


@pytest.mark.parametrize(("kind", "losses"), CASES, ids=lambda case: case if isinstance(case, str) else "+".join(case))
def test_gradients_and_terms_of_two_processes_are_those_of_the_whole_batch(kind: str, losses: tuple[str, ...]) -> None:
    expected = gradients_of_a_step(kind, losses, len(NAMES))
    for found in pair(gradients_of_a_step, kind, losses, len(NAMES)):
        # A channel of the second student is constant, so rounding decides on which side of its kink it lies.
        same(found, expected, 5e-3 if kind == "online" else 1e-3)


def test_process_without_a_sample_adds_nothing() -> None:
    expected = gradients_of_a_step("plain", ("hint",), 1)
    for found in pair(gradients_of_a_step, "plain", ("hint",), 1):
        same(found, expected)


def test_batch_taken_in_parts_has_the_mean_of_their_gradients() -> None:
    """Of parts of 1 and 2 samples, each with its own batch statistics."""
    found = gradients_of_a_step("plain", ("basic",), len(NAMES), 2)
    parts = []
    for start, end in ((0, 1), (1, 3)):
        alone = made("plain", ("basic",))
        alone.step(whole_batch().of_samples(start, end), 1e-3)
        trained = [parameter.grad for group in alone.parameter_groups() for parameter in group]
        parts.append(np.concatenate([np.zeros(1) if g is None else g.flatten().numpy() for g in trained]))
    assert apart(found["gradient"], (parts[0] + 2 * parts[1]) / 3) < 1e-5


def test_parts_of_two_processes_are_taken_together() -> None:
    """Each has one sample in the first part and none or one in the second: as many parts in both."""
    first, second = pair(gradients_of_a_step, "plain", ("basic",), len(NAMES), 2)
    assert apart(first["gradient"], second["gradient"]) == 0


@pytest.mark.parametrize("variant", [TINY, replace(TINY, bn=True)], ids=["published", "with batch norm"])
def test_batch_norm_sees_the_whole_batch(variant: Variant) -> None:
    alone = made("plain", ("none",), variant)
    alone.step(whole_batch(), 1e-3)
    expected = dict(alone.student.named_buffers())
    for found in pair(statistics_of_a_step, variant):
        assert found.keys() == expected.keys() and len(expected) > 3
        for name, value in found.items():
            assert np.allclose(value, expected[name].numpy(), rtol=1e-4, atol=1e-5), name


def test_sample_that_is_nan_in_one_process_is_skipped_by_both() -> None:
    (said, kept), (other, also_kept) = pair(poisoned_step)
    assert said == other
    assert "term supervised is nan for the samples 000000" in said
    assert kept and also_kept


# --- whole trainings ------------------------------------------------------------------------------------


RECIPE = brief(loss=["hint", "adversarial"], train={"batch_size": 2, "epochs": 2}, data={"holdout": 0.2})


@pytest.fixture(scope="module")
def together(things: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of two processes."""
    runs = tmp_path_factory.mktemp("together") / "runs"
    main, other = pair(trained, things, runs, RECIPE, {"teacher": teacher})
    assert main[-1].startswith("tiny: EPE3D")
    assert other[-1] == main[-1]  # the figures of the one that evaluated
    return runs


def test_training_of_two_processes_has_one_writer_and_all_terms(
    things: Path, teacher: Path, together: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "alone"
    run_experiment(experiment(things, runs, RECIPE, teacher=teacher), Quiet())
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in runs.iterdir())
    assert about(together)["state"] == "finished"
    assert about(together)["versions"]["processes"] == 2
    for one, other in zip(metrics(together), metrics(runs), strict=True):
        assert one.keys() == other.keys()
        assert one["loss_supervised"] == pytest.approx(other["loss_supervised"], rel=0.02)
        assert one["validation_epe3d"] == pytest.approx(other["validation_epe3d"], rel=0.02)


def test_all_processes_end_with_the_same_weights(things: Path, tmp_path: Path) -> None:
    recipe = brief(loss=["none"], train={"batch_size": 2, "epochs": 2})
    first, second = pair(weights_of, things, tmp_path / "runs", recipe)
    assert first == second


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_stop_of_one_stops_both_and_they_go_on_as_if_nothing_had_been(
    things: Path, teacher: Path, together: Path, tmp_path: Path, steps: int
) -> None:
    runs = tmp_path / "runs"
    for error in pair(trained_for, things, runs, RECIPE, {"teacher": teacher}, steps):
        assert isinstance(error, Interrupted)
        assert (error.reason, error.exit_code) == ("enough", 143)
    assert about(runs)["state"] == "interrupted"
    pair(gone_on_together, runs, 10**6)
    assert digest(runs) == digest(together)
    assert metrics(runs) == metrics(together)


def test_scene_that_one_process_cannot_read_ends_both_after_saving(things: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(things, tmp_path / "things"))
    recipe = brief(train={"batch_size": 2, "checkpoint_minutes": 100, "validate_every": 3}, data={"holdout": 0.01})
    bad = sorted(data.glob("train/*"))[3] / "pc2.npy"
    bad.write_bytes(bad.read_bytes()[:-4] + b"\xff\xff\xff\xff")  # a NaN
    for error in pair(trained, data, tmp_path / "runs", recipe, {}):
        assert isinstance(error, DataError)
        assert bad.parent.name in str(error)


def test_resume_by_another_number_of_processes_is_a_difference(together: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(together, tmp_path / "runs", symlinks=True))
    record = about(runs) | {"state": "running"}
    (runs / NAME / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="processes 2, now 1"):
        gone_on(runs)


# --- being started by others ----------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 1])
def test_processes_that_do_not_meet_say_so(own: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
