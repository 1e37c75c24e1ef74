# SPDX-License-Identifier: MIT
"""Every export format computes what the network computes; a file that does not is not written."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_world import LEAST, Scenes, tiny_network
from torch import nn

from bpfn_cli.choices import Storage
from bpfn_cli.cli.results.networks import read_network
from bpfn_cli.errors import CheckpointError, DiskError, OutOfMemoryError, ShapeError, UsageError
from bpfn_cli.models import VARIANTS, BiPointFlowNet, build_model, export, slim
from bpfn_cli.models.exported import FORMATS, OnnxNetwork, Pair, format_of, onnx_file
from bpfn_cli.models.exported.base import Request, Runner
from bpfn_cli.models.predict import FlowPredictor
from bpfn_cli.models.reference import ReferenceNetwork

ONNX = FORMATS["onnx"]


def pair(points: int = LEAST + 100) -> Pair:
    scene = Scenes(points=points).load(0)
    return Pair("scene", scene.pc1, scene.pc2, scene.flow)


def run(runner: Runner, points: int) -> np.ndarray:
    with torch.no_grad():
        return runner(*(torch.from_numpy(cloud[:points])[None] for cloud in (pair().pc1, pair().pc2))).numpy()


def flow_of(model: BiPointFlowNet, points: int) -> np.ndarray:
    return run(lambda *clouds: model(*clouds).flows[0], points)


def with_statistics(model: BiPointFlowNet) -> BiPointFlowNet:
    """Batch norms that change their input."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, std=0.1)  # type: ignore[arg-type]
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_computes_the_flow_of_every_variant(name: str) -> None:
    torch.manual_seed(0)
    c_mid = 2 if name.startswith("declinear") else None
    variant = slim(VARIANTS[name], name, width=0.125, c_mid=c_mid)
    model = with_statistics(build_model(variant, LEAST))
    runner = ONNX.read(ONNX.write(model, Request()), name)
    for points in (LEAST, LEAST + 37):  # not a multiple of anything
        expected = flow_of(model, points)
        assert np.abs(run(runner, points) - expected).max() < 1e-4 * np.abs(expected).max()


def test_onnx_has_standard_operators_and_one_scan_for_sampling() -> None:
    content = onnx.load_from_string(ONNX.write(tiny_network(), Request(LEAST)))
    onnx.checker.check_model(content, full_check=True)
    assert [(one.domain, one.version) for one in content.opset_import] == [("", 18)]
    bodies = [node.attribute[0].g for node in content.graph.node if node.op_type == "Scan"]
    kinds = Counter("ArgMax" if any(node.op_type == "ArgMax" for node in body.node) else "TopK" for body in bodies)
    assert kinds["ArgMax"] == 1
    assert not any(node.op_type in ("TopK", "ArgMax") for node in content.graph.node)  # no N x M distances
    products = [node for node in content.graph.node if node.op_type == "MatMul"]
    assert {node.name.replace(".", "/").split("/")[0] for node in products} == {
        name for name, _ in tiny_network().named_children()
    }


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["onnx", "pth", "safetensors"])
def test_weights_take_half_the_file_in_sixteen_bits(name: str, stored: Storage) -> None:
    model = tiny_network(variant=slim(VARIANTS["weightnet4"], "quarter", width=0.5))
    whole, half = (FORMATS[name].write(model, Request(stored=each)) for each in ("float32", stored))
    assert len(half) < 0.6 * len(whole)
    found, expected = run(FORMATS[name].read(half, f"f{FORMATS[name].suffix}"), LEAST), flow_of(model, LEAST)
    assert 0 < np.median(np.abs(found - expected)) < 0.05 * np.median(np.abs(expected))


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_torch_program_computes_the_flow(stored: Storage, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt2"
    (found,) = export(tiny_network(), path, pair(), points=LEAST, stored=stored)
    assert found.median_m < 1e-3
    program = torch.export.load(path)
    assert not any("bpfn" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("name", ["onnx", "pth", "safetensors"])
def test_export_reports_the_difference_on_the_pair(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"f{FORMATS[name].suffix}"
    found = export(tiny_network(), path, pair())
    assert [one.points for one in found] == [LEAST, LEAST + 1][: len(found)]
    for one in found:
        assert one.median_m <= one.largest_m < 1e-4
        assert one.exported_epe3d_m == pytest.approx(one.epe3d_m, abs=1e-5)
    assert path.is_file()


def test_export_changes_nothing_of_the_caller(tmp_path: Path) -> None:
    model = tiny_network().train()
    before = torch.get_rng_state()
    export(model, tmp_path / "f.pt2", pair())
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_network_is_exported_as_the_usual_one(tmp_path: Path) -> None:
    usual = tiny_network()
    plain = ReferenceNetwork(usual.variant, usual.num_points)
    plain.load_state_dict(usual.state_dict())
    export(plain.eval(), tmp_path / "f.pt2", pair())
    program = torch.export.load(tmp_path / "f.pt2")
    assert not any("bpfn" in str(node.target) for node in program.graph.nodes)


def test_onnx_runs_on_the_cpu_whatever_the_device_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve_device(name: str) -> torch.device:
        return torch.device("cpu" if name == "cpu" else "meta")  # as on a machine with a GPU

    export(tiny_network(), tmp_path / "f.onnx", pair())
    monkeypatch.setattr("bpfn_cli.device.resolve_device", resolve_device)
    assert read_network(tmp_path / "f.onnx", points=None, device="auto").device.type == "cpu"


class Wrong(type(ONNX)):  # type: ignore[misc]
    """ONNX of another network."""

    def write(self, model: BiPointFlowNet, request: Request) -> bytes:
        return super().write(tiny_network(1), request)


class Broken(type(ONNX)):  # type: ignore[misc]
    def read(self, content: bytes, name: str) -> Runner:
        return lambda pc1, pc2: torch.full_like(pc1, torch.nan)


@pytest.mark.parametrize("format", [Wrong(), Broken()])
def test_file_with_another_flow_is_not_written(format: Any, tmp_path: Path) -> None:
    path = tmp_path / "f.onnx"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match="not written: its flow differs"):
        export(tiny_network(), path, pair(), format=format)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="no space left"):
        export(tiny_network(), tmp_path / "f.onnx", pair())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("points", [LEAST - 1, 2**16 + 1])
def test_points_out_of_range_are_refused(points: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--points {points}: use {LEAST} to 65536"):
        export(tiny_network(), tmp_path / "f.onnx", pair(), points=points)


def test_pair_with_too_few_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="points, 2000 are needed"):
        export(tiny_network(), tmp_path / "f.onnx", pair(), points=2000)


def test_unknown_suffix_is_refused() -> None:
    with pytest.raises(UsageError, match=r"f.tflite: use one of the suffixes .onnx, .pt2, .pth, .safetensors"):
        format_of(Path("f.tflite"))


def test_layer_without_operator_is_refused() -> None:
    model = tiny_network()
    model.level0 = nn.Identity()
    with pytest.raises(UsageError, match="--format onnx: no operator for Identity"):
        ONNX.write(model, Request())


def test_unknown_operator_is_refused() -> None:
    content = onnx.load_from_string(ONNX.write(tiny_network(), Request()))
    content.graph.node[0].op_type = "Wobble"
    with pytest.raises(CheckpointError, match=r"f\.onnx: onnxruntime .* cannot run it .*Wobble"):
        OnnxNetwork(content.SerializeToString(), "f.onnx")


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "`bpfn export` did not write"), ("[", "not a bpfn checkpoint"), ('{"format": 1}', "no valid bpfn")],
)
def test_onnx_files_of_others_are_refused(value: str | None, message: str) -> None:
    content = onnx.load_from_string(ONNX.write(tiny_network(), Request()))
    kept = {one.key: one.value for one in content.metadata_props if one.key != "bpfn"}
    del content.metadata_props[:]
    onnx.helper.set_model_props(content, kept | ({} if value is None else {"bpfn": value}))
    with pytest.raises(CheckpointError, match=message):
        OnnxNetwork(content.SerializeToString(), "f.onnx")


def test_damaged_onnx_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"f\.onnx: onnxruntime .* cannot run it"):
        OnnxNetwork(ONNX.write(tiny_network(), Request())[:5000], "f.onnx")


def test_predictor_takes_an_onnx_network_and_averages() -> None:
    model, clouds = tiny_network(), pair()
    exported = OnnxNetwork(ONNX.write(model, Request(LEAST)), "f.onnx")
    assert (exported.points, exported.num_points, exported.variant) == (LEAST, LEAST, model.variant)
    own, other = (
        FlowPredictor(network, points=LEAST, average=2).estimate(clouds.pc1, clouds.pc2)
        for network in (model, exported)
    )
    assert np.abs(own.flow - other.flow).max() < 1e-5
    assert other.parts == own.parts == 2
    assert other.spread_m == pytest.approx(own.spread_m, abs=1e-5)


def test_fixed_onnx_refuses_other_sizes() -> None:
    exported = OnnxNetwork(ONNX.write(tiny_network(), Request(LEAST)), "f.onnx")
    with pytest.raises(ShapeError, match=f"takes {LEAST} points, not {LEAST + 1}"):
        exported(*torch.rand(2, 1, LEAST + 1, 3))


def test_memory_that_runs_out_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = OnnxNetwork(ONNX.write(tiny_network(), Request()), "f.onnx")

    def fail(*_: object) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 5")

    monkeypatch.setattr(exported, "_session", type("Session", (), {"run": staticmethod(fail)}))
    with pytest.raises(OutOfMemoryError, match=f"{LEAST} points do not fit in memory"):
        exported(*torch.rand(2, 1, LEAST, 3))


@pytest.mark.parametrize(("module", "verb"), [("onnx", "writing"), ("onnxruntime", "running")])
def test_missing_extra_names_the_install_line(module: str, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = ONNX.write(tiny_network(), Request())
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UsageError, match=f"{verb} ONNX files needs {module}") as caught:
        ONNX.read(content, "f.onnx") if verb == "running" else ONNX.write(tiny_network(), Request())
    assert str(caught.value).endswith(onnx_file.INSTALL)
