# SPDX-License-Identifier: MIT
"""`bpfn slim` with a budget."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import bpfn, refused, succeeded
from tiny_world import BIG, guess_sensitivities, tiny_network, write_things

from bpfn_cli.cli.network.prune import quantity, rounded_up, share
from bpfn_cli.errors import UsageError
from bpfn_cli.files import sha256_of
from bpfn_cli.history import read_history
from bpfn_cli.models import Variant, read_checkpoint, save_checkpoint
from bpfn_cli.models.cost import cost_of
from bpfn_cli.models.pruning import prune, sensitivity
from bpfn_cli.models.pruning.budget import smallest
from bpfn_cli.models.pruning.prune import Pruned, Pruner

QUICK = ("--scenes", 4, "--recover", 2, "--points", 1024, "--data", "things")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_variants: None) -> Iterator[Path]:
    """A folder with six scenes and a teacher."""
    folder = tmp_path_factory.mktemp("place")
    write_things(folder / "things", train=6)
    save_checkpoint(folder / "teacher.safetensors", tiny_network(1, BIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "MEASURED_SHARES", (0.5,))
        yield folder
    return folder


@pytest.mark.parametrize(
    ("flag", "field", "share"),
    [
        ("--target-macs", "macs", 0.7),
        pytest.param("--target-params", "parameters", 0.8, marks=pytest.mark.slow),
    ],
)
def test_budget_is_met_and_the_result_is_a_checkpoint(place: Path, flag: str, field: str, share: float) -> None:
    target = share * getattr(cost_of(BIG, 1024), field)
    words = ("slim", "--teacher", "teacher.safetensors", flag, f"{target / 1e6}M", "--json", "--force")
    said = json.loads(succeeded(bpfn(*words, *QUICK, cwd=place)).stdout)
    read = read_checkpoint(place / "pruned.safetensors")
    assert 0.98 * target <= getattr(cost_of(read.variant, 1024), field) <= target
    assert (said["variant"], read.metadata["importance"], read.metadata["recovery_steps"]) == ("pruned", "taylor", 2)
    assert read.metadata["epe3d"] == said["epe3d"]
    steps = read_history(read.metadata)
    assert [(one.step, one.network) for one in steps] == [("teacher", "big"), ("pruned", "pruned")]
    assert [one.epe3d_m for one in steps] == [said["epe3d"]["teacher_m"], said["epe3d"]["recovered_m"]]
    assert steps[0].sha256 == sha256_of(place / "teacher.safetensors")
    assert said["epe3d"]["scenes"] == 2
    shown = succeeded(bpfn("profile", "--checkpoint", "pruned.safetensors", "--points", 1024, cwd=place)).stdout
    assert "History of pruned.safetensors" in shown


def test_given_sizes_take_the_most_important_channels(place: Path) -> None:
    words = ("slim", "--teacher", "teacher.safetensors", "--variant", "tiny", "--out", "narrow.safetensors")
    result = succeeded(bpfn(*words, "--importance", "l1", *QUICK, cwd=place))
    assert "after 2 steps" in result.stdout
    assert "next: bpfn distill --checkpoint narrow.safetensors --teacher teacher.safetensors" in result.stderr


def test_contradictions_are_one_line(place: Path) -> None:
    words = ("slim", "--teacher", "teacher.safetensors")
    for more, expected in (
        (("--target-macs", "5G", "--target-params", "1M"), "--target-macs and --target-params: use only one of them"),
        (("--keep-within", "10%", "--width", 0.5), "--keep-within and --width: use only one of them"),
        (("--keep-within", "10"), "--keep-within 10: use a share of the teacher's error, such as 10% or 0.1"),
        (("--target-macs", "5G", "--width", 0.5), "--target-macs and --width: use only one of them"),
        (("--target-macs", "five"), "--target-macs five: use a number above 0, such as 5G or 1.5M"),
        (("--target-latency", "0ms"), "--target-latency 0ms: use a number above 0, such as 60ms"),
        (("--target-macs", "100G"), "--target-macs: the network costs"),
        (("--target-macs", "1k"), "--target-macs: the smallest network that can be cut from it costs"),
        (("--target-macs", "5G", "--out", "x.pth"), "--out x.pth: a .pth file cannot hold all sizes"),
        (("--data", "things"), "--data: only for pruning"),
        (("--recover", 5), "--recover: only for pruning"),
    ):
        extra = () if expected.endswith("only for pruning") else QUICK
        out = () if "--out" in more else ("--out", "x.safetensors")
        refused(bpfn(*words, *extra, *more, *out, cwd=place), 2, expected)
    refused(bpfn("slim", "--target-macs", "5G", cwd=place), 2, "--target-macs: add --teacher, the network to prune")
    refused(bpfn("slim", "--keep-within", "10%", cwd=place), 2, "--keep-within: add --teacher, the network to prune")
    refused(
        bpfn("slim", "--checkpoint", "teacher.safetensors", "--importance", "l1", cwd=place), 2, "--importance: --check"
    )
    assert not list(place.glob("x.*"))


@pytest.mark.parametrize(("text", "value"), [("5G", 5e9), ("1.5M", 1.5e6), ("200k", 2e5), (" 7 ", 7.0)])
def test_quantities_by_hand(text: str, value: float) -> None:
    assert quantity("--target-macs", text) == value
    assert quantity("--target-latency", "60ms", "ms") == quantity("--target-latency", "60", "ms") == 60
    for wrong in ("", "G", "-5G", "5 GB", "1e9", "nan"):
        with pytest.raises(UsageError):
            quantity("--target-macs", wrong)


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.1", 0.1), ("0", 0.0), (" 150 %", 1.5), ("2.5%", 0.025)])
def test_shares_by_hand(text: str, value: float) -> None:
    assert share("--keep-within", text) == pytest.approx(value)
    for wrong in ("", "%", "-1%", "1", "10", "ten", "1001%", "nan", "1e-1"):
        with pytest.raises(UsageError):
            share("--keep-within", wrong)


@pytest.mark.parametrize(("value", "text"), [(4.1301e9, "4.14G"), (4.13e9, "4.13G"), (1.5e6, "1.5M"), (999.2, "1000")])
def test_costs_are_rounded_up_by_hand(value: float, text: str) -> None:
    assert rounded_up(value) == text


def test_as_small_as_the_error_allows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pruner, "measure", guess_sensitivities)
    words = ("slim", "--teacher", "teacher.safetensors", "--keep-within", "900%", "--json", "--force")
    said = json.loads(
        succeeded(
            bpfn(*words, *QUICK, "--recover", 0, "--importance", "l1", "--out", "least.safetensors", cwd=place)
        ).stdout
    )
    read, errors = read_checkpoint(place / "least.safetensors"), said["epe3d"]
    assert said["keep_within"]["limit_m"] == pytest.approx(10 * errors["teacher_m"])
    assert errors["cut_m"] <= said["keep_within"]["limit_m"]
    assert cost_of(read.variant, 1024).macs < 0.4 * cost_of(BIG, 1024).macs


@pytest.fixture
def pretended_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of measured errors: 1 m for the teacher, and as much again for a network without any MACs."""

    def make(self: Pruner, variant: Variant, *_: object) -> Pruned:
        excess = 1 - cost_of(variant, 1024).macs / cost_of(BIG, 1024).macs
        return Pruned(self.cut(variant), 0, 1 + excess, None)

    monkeypatch.setattr(Pruner, "make", make)
    monkeypatch.setattr(Pruner, "measure", guess_sensitivities)
    monkeypatch.setattr(prune, "mean_epe3d", lambda *_: 1.0)


def pretend_latency(variant: Variant, points: int) -> float:
    """In place of the measurement: 20 ms, and 80 ms for the MACs of the teacher."""
    return 20 + 80 * cost_of(variant, points).macs / cost_of(BIG, points).macs


def test_a_budget_whose_error_is_too_large_is_refused_with_the_nearest(place: Path, pretended_errors: None) -> None:
    words = ("slim", "--teacher", "teacher.safetensors", "--keep-within", "30%", *QUICK, "--importance", "l1")
    macs = cost_of(BIG, 1024).macs
    result = bpfn(*words, "--target-macs", f"{0.5 * macs / 1e6}M", "--out", "x.safetensors", cwd=place)
    refused(result, 2, "the nearest budget that keeps it is --target-macs")
    nearest = quantity("--target-macs", result.stderr.split()[-1])
    assert nearest == pytest.approx(0.7 * macs, rel=0.05)
    assert not (place / "x.safetensors").exists()
    done = succeeded(bpfn(*words, "--target-macs", f"{0.9 * macs / 1e6}M", "--out", "y.safetensors", cwd=place))
    assert "within 30 % of the teacher's" in done.stderr


@pytest.fixture
def timed(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, where the time of a network follows from its sizes."""
    monkeypatch.setattr("bpfn_cli.profiling.pruning.latency_ms", pretend_latency)
    monkeypatch.setattr(Pruner, "measure", guess_sensitivities)
    return place


LATENCY = ("slim", "--teacher", "teacher.safetensors", *QUICK, "--recover", 0, "--importance", "l1")


@pytest.mark.parametrize("target", ["60ms", "40"])
def test_latency_is_met_within_a_tenth(timed: Path, target: str) -> None:
    out = f"latency{target}.safetensors"
    said = json.loads(succeeded(bpfn(*LATENCY, "--target-latency", target, "--out", out, "--json", cwd=timed)).stdout)
    variant = read_checkpoint(timed / out).variant
    assert pretend_latency(variant, 1024) == pytest.approx(quantity("--target-latency", target, "ms"), rel=0.1)
    assert said["parameters"] == cost_of(variant, 1024).parameters


@pytest.mark.parametrize(("target", "nearest"), [("5ms", None), ("500ms", "100 ms")])
def test_impossible_latency_is_refused_with_the_nearest(timed: Path, target: str, nearest: str | None) -> None:
    least = f"{pretend_latency(smallest(BIG), 1024):.3g} ms"
    result = bpfn(*LATENCY, "--target-latency", target, "--out", "new/x.safetensors", cwd=timed)
    refused(result, 2, f"within 10 % of {target[:-2]} ms; the nearest takes {nearest or least}")
    assert not (timed / "new").exists()


def test_a_latency_whose_error_is_too_large_is_refused_with_the_nearest(timed: Path, pretended_errors: None) -> None:
    words = (*LATENCY, "--keep-within", "30%")
    result = bpfn(*words, "--target-latency", "60ms", "--out", "new/x.safetensors", cwd=timed)
    refused(result, 2, "the nearest budget that keeps it is --target-latency")
    nearest = result.stderr.split()[-1]
    assert quantity("--target-latency", nearest, "ms") == pytest.approx(20 + 0.7 * 80, rel=0.05)
    assert not (timed / "new").exists()
    done = succeeded(bpfn(*words, "--target-latency", nearest, "--out", "quick.safetensors", cwd=timed))
    assert "within 30 % of the teacher's" in done.stderr


def test_weights_in_fewer_bits_are_a_checkpoint_like_any_other(place: Path) -> None:
    words = ("slim", "--checkpoint", "teacher.safetensors", "--store", "int8")
    done = succeeded(bpfn(*words, "--out", "int8.safetensors", "--json", cwd=place))
    stored = json.loads(done.stdout)["stored"]
    assert stored["as"] == "int8"
    assert 0 < stored["mean_m"] <= stored["largest_m"]
    steps = read_history(read_checkpoint(place / "int8.safetensors").metadata)
    assert [(one.step, one.moved_m) for one in steps] == [("original", None), ("stored int8", stored["mean_m"])]
    assert steps[1].bytes < 0.6 * steps[0].bytes
    assert (place / "int8.safetensors").stat().st_size < 0.6 * (place / "teacher.safetensors").stat().st_size
    succeeded(bpfn("slim", "--checkpoint", "int8.safetensors", "--out", "again.safetensors", cwd=place))
    refused(bpfn(*words, "--out", "int8.pth", cwd=place), 2, "--store int8: a .pth file is float32")


@pytest.mark.slow
def test_the_history_from_the_teacher_to_int8_is_reported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pruner, "measure", guess_sensitivities)
    words = ("slim", "--teacher", "teacher.safetensors", "--target-macs", "7M", "--out", "five.safetensors")
    succeeded(bpfn(*words, *QUICK, "--importance", "l1", cwd=place))
    words = ("distill", "--checkpoint", "five.safetensors", "--teacher", "teacher.safetensors", "--name", "five")
    succeeded(bpfn(*words, "--epochs", 1, "--points", 1024, "--data", "things", "--loss", "basic", cwd=place))
    succeeded(bpfn("slim", "--checkpoint", "runs/five", "--store", "int8", "--out", "small.safetensors", cwd=place))
    for name in ("five", "small"):
        words = ("eval", "--checkpoint", f"{name}.safetensors", "--points", 1024, "--data", "things")
        succeeded(bpfn(*words, cwd=place))
    succeeded(bpfn("report", "--out", "results", cwd=place))
    with (place / "results" / "history.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["teacher", "pruned", "distilled", "stored int8"]
    assert {row["run"] for row in rows} == {"small.safetensors"}
    assert all(float(row["test_epe3d"]) > 0 for row in rows)
