# SPDX-License-Identifier: MIT
"""Foreign files cannot run code, damage is always found, what is written comes back."""

from __future__ import annotations

import argparse
import json
import pickle
import random
import sys
import types
import zipfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from bpfn_cli.errors import CheckpointError, DiskError, UsageError
from bpfn_cli.models import (
    BASELINE,
    VARIANTS,
    BiPointFlowNet,
    Separable,
    build_model,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    save_published,
    slim,
)
from bpfn_cli.models.checkpoint import _digest, checkpoint_bytes

TINY = slim(BASELINE, "tiny", width=0.05, c_mid=1)


@pytest.fixture(scope="module")
def model() -> BiPointFlowNet:
    torch.manual_seed(0)
    return build_model(TINY, 1024)


@pytest.fixture
def foreign(tmp_path: Path, model: BiPointFlowNet) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def assert_same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


QUICK = ("declinear34", "half_bottleneck")
EACH_VARIANT = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("name", EACH_VARIANT)
def test_round_trip_of_own_format(tmp_path: Path, name: str) -> None:
    model = build_model(name, 2048)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, epoch=3, epe3d=0.1)
    read = read_checkpoint(path)
    assert read.variant == VARIANTS[name]
    assert read.num_points == 2048
    assert read.metadata == {"epoch": 3, "epe3d": 0.1}
    loaded = load_checkpoint(path)
    assert not loaded.training
    assert loaded.num_points == 2048
    assert_same_state(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", EACH_VARIANT)
def test_variant_of_a_foreign_file_is_inferred(tmp_path: Path, name: str) -> None:
    model = build_model(name)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    read = read_checkpoint(tmp_path / "m.pth")
    assert read.variant == VARIANTS[name]
    assert read.notes == ()
    assert_same_state(read.state, model.state_dict())


def test_variant_with_batch_norm_and_custom_sizes_is_inferred(tmp_path: Path) -> None:
    torch.save(build_model("baseline", bn=True).state_dict(), tmp_path / "bn.pth")
    read = read_checkpoint(tmp_path / "bn.pth")
    assert (read.variant.name, read.variant.bn) == ("baseline", True)
    sizes = slim(BASELINE, "custom", width=0.25, c_mid=(2, 3, 4, 5, 6), bottleneck=2)
    torch.save(build_model(sizes).state_dict(), tmp_path / "custom.pth")
    assert read_checkpoint(tmp_path / "custom.pth").variant == sizes


@pytest.mark.parametrize("sizes", [{"neighbors": {"estimator": 5}}, {"bottleneck": 10}])
def test_state_dict_that_would_lose_sizes_is_not_written(tmp_path: Path, sizes: dict[str, Any]) -> None:
    network = build_model(slim(TINY, "own", **sizes))
    with pytest.raises(UsageError, match=r"x\.pth: numbers of neighbors.*use the suffix \.safetensors"):
        save_published(tmp_path / "x.pth", network)
    assert not list(tmp_path.iterdir())


PARTS = Separable(encoder=(1, 4), estimators=(0, 2))


def test_separable_levels_are_written_and_inferred_by_part(tmp_path: Path) -> None:
    sizes = slim(BASELINE, "parts", width=0.25, c_mid=4, separable=PARTS)
    model = build_model(sizes)
    save_checkpoint(tmp_path / "own.safetensors", model)
    torch.save(model.state_dict(), tmp_path / "parts.pth")
    assert read_checkpoint(tmp_path / "own.safetensors").variant == sizes
    assert read_checkpoint(tmp_path / "parts.pth").variant == sizes


@pytest.mark.parametrize("separable", [False, True])
def test_header_says_all_or_none_as_in_earlier_files(tmp_path: Path, separable: bool) -> None:
    sizes = slim(BASELINE, "old", width=0.25, c_mid=4, separable=separable)
    headers: list[Any] = []
    content = resealed(checkpoint_bytes(build_model(sizes), {}), lambda about: headers.append(about) or about)
    assert headers[0]["variant"]["separable"] is separable
    (tmp_path / "old.safetensors").write_bytes(content)
    assert read_checkpoint(tmp_path / "old.safetensors").variant == sizes


@pytest.mark.parametrize("residual", [(), (1, 2, 3, 4)])
def test_header_has_residual_blocks_only_if_the_network_has(tmp_path: Path, residual: tuple[int, ...]) -> None:
    sizes = slim(TINY, "own", residual=residual, bottleneck=2, bn=True)
    headers: list[Any] = []
    content = resealed(checkpoint_bytes(build_model(sizes), {}), lambda about: headers.append(about) or about)
    assert headers[0]["variant"].get("residual") == ([*residual] or None)
    (tmp_path / "own.safetensors").write_bytes(content)
    save_published(tmp_path / "own.pth", build_model(sizes))
    assert read_checkpoint(tmp_path / "own.safetensors").variant == sizes
    assert read_checkpoint(tmp_path / "own.pth").variant == sizes


ODD_SHAPES = [(), (0,), (0, 0, 0), (7,), (2, 3, 5, 7)]


def test_misshapen_residual_blocks_are_rejected(tmp_path: Path) -> None:
    state = build_model(slim(TINY, "own", residual=(1, 2, 3, 4))).state_dict()
    names = [name for name in state if name.startswith(("level0.", "level0_1."))]
    for name, shape in zip(names, cycle(ODD_SHAPES)):
        torch.save({**state, name: torch.zeros(shape)}, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "odd.pth")
    del state["level2_0.middle.composed_module.0.weight"]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"level2_0\.middle\.composed_module\.0\.weight is missing"):
        load_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_prefix_and_nesting_are_removed(tmp_path: Path, model: BiPointFlowNet, key: str) -> None:
    path = tmp_path / "checkpoint.pth"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({key: state, "epoch": 9, "args": argparse.Namespace(lr=0.1, sizes=[1, 2])}, path)
    read = read_checkpoint(path)
    assert_same_state(read.state, model.state_dict())
    assert read.notes == ("the prefix `module.` was removed",)
    assert_same_state(load_checkpoint(path).state_dict(), model.state_dict())


@pytest.mark.parametrize("key", ["model_state", "network", "module", "ema", "params", "ema.shadow", "a.b.c"])
def test_weights_are_found_in_any_mapping(tmp_path: Path, model: BiPointFlowNet, key: str) -> None:
    nested: Any = model.state_dict()
    for part in reversed(key.split(".")):
        nested = {part: nested, "decay": 0.9}
    torch.save({**nested, "epoch": 9, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert_same_state(read.state, model.state_dict())
    assert read.notes == ()


@pytest.mark.parametrize(
    ("rename", "removed"),
    [
        ("model.{}", "the prefix `model.` was removed"),
        ("_orig_mod.{}", "the prefix `_orig_mod.` was removed"),
        ("model._orig_mod.module.{}", "the prefixes `model.` and `_orig_mod.` and `module.` were removed"),
        ("net.student.{}", "the prefix `net.student.` was removed"),
    ],
)
def test_prefixes_are_found_by_the_ends_of_names(
    tmp_path: Path, model: BiPointFlowNet, rename: str, removed: str
) -> None:
    torch.save({rename.format(name): tensor for name, tensor in model.state_dict().items()}, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert_same_state(read.state, model.state_dict())
    assert read.notes == (removed,)


def test_wrapped_layers_are_unwrapped(tmp_path: Path, model: BiPointFlowNet) -> None:
    state = {name.replace("level1.", "level1.module.", 1): tensor for name, tensor in model.state_dict().items()}
    assert state.keys() != model.state_dict().keys()
    torch.save(state, tmp_path / "c.pth")
    assert_same_state(read_checkpoint(tmp_path / "c.pth").state, model.state_dict())


@pytest.mark.parametrize("module", ["pytorch_lightning.utilities.parsing", "lightning.fabric.utilities.data"])
def test_lightning_checkpoint_with_its_settings_loads(
    tmp_path: Path, model: BiPointFlowNet, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = type("AttributeDict", (dict,), {"__module__": module})
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        stand_in = types.ModuleType(".".join(parts[:end]))
        stand_in.AttributeDict = made  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    content = {
        "state_dict": state,
        "hyper_parameters": made(lr=1e-3, sizes=[1, 2]),
        "global_step": 5,
        "loops": {"a": {}},
    }
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    read = read_checkpoint(tmp_path / "last.ckpt")
    assert_same_state(read.state, model.state_dict())
    left_out = "1 other tensor left out, first criterion.weight"
    assert read.notes == ("the prefix `model.` was removed", left_out)


def test_of_weights_and_their_average_the_first_are_used_and_noted(tmp_path: Path, model: BiPointFlowNet) -> None:
    average = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    torch.save({"ema": average, "model": model.state_dict()}, tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert_same_state(read.state, model.state_dict())
    assert read.notes == ("the weights in model are used; others are in ema",)


def test_two_networks_in_one_state_dict_are_refused(tmp_path: Path, model: BiPointFlowNet) -> None:
    both = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": both}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"holds several networks \(student\. and teacher\.\); save only one"):
        read_checkpoint(tmp_path / "c.pth")


def test_unknown_layers_inside_a_prefixed_network_are_refused(tmp_path: Path, model: BiPointFlowNet) -> None:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({**state, "model.attention.weight": torch.ones(3)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"0 names missing and 1 unexpected, first attention\.weight"):
        read_checkpoint(tmp_path / "c.pth")


def test_bit_flip_in_a_foreign_file_is_found_wherever_it_matters(tmp_path: Path, foreign: Path) -> None:
    content, generator = foreign.read_bytes(), random.Random(3)
    whole = read_checkpoint(foreign).state
    found = 0
    for place in [generator.randrange(len(content)) for _ in range(30)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        foreign.write_bytes(flipped)
        try:
            assert_same_state(read_checkpoint(foreign).state, whole)  # between the members
        except CheckpointError:
            found += 1
    assert found > 20


def test_file_without_checksums_loads_and_says_so(tmp_path: Path, model: BiPointFlowNet) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert "without checksums" in read_checkpoint(tmp_path / "c.pth").notes[0]
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert "without checksums" in read_checkpoint(tmp_path / "old.pth").notes[0]


def test_harmless_extras_beside_the_weights_load(tmp_path: Path, model: BiPointFlowNet) -> None:
    path = tmp_path / "checkpoint.pth"
    extras = {"args": argparse.Namespace(lr=1e-3), "epe": np.float64(0.1), "best": np.float32(2), "step": np.int64(4)}
    torch.save({"state_dict": model.state_dict(), **extras}, path)
    assert_same_state(read_checkpoint(path).state, model.state_dict())


def test_scalar_of_an_older_numpy_loads(tmp_path: Path, model: BiPointFlowNet) -> None:
    """Older NumPy calls the module numpy.core, the present one numpy._core."""
    source, path = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save({"state_dict": model.state_dict(), "epe": np.float64(0.1)}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as target:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("data.pkl"):
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                assert b"numpy.core.multiarray" in content
            target.writestr(member.filename, content)
    assert_same_state(read_checkpoint(path).state, model.state_dict())


class Canary:
    """Unpickling touches a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


class Shell:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_malicious_pickle_names_the_global_and_runs_nothing(
    tmp_path: Path, model: BiPointFlowNet, legacy: bool
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    content = {"state_dict": model.state_dict(), "x": Shell(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"(posix|nt|os)\.system") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not canary.exists()


@pytest.mark.parametrize("kind", [Canary, Shell])
def test_raw_pickle_runs_nothing(tmp_path: Path, kind: Any) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(kind(canary)))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # the control: this file bites
    assert canary.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"  <html>", "a web page"),
        (b"PK", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\xff" * 4096, "damaged"),
        (b"hello world\n", "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
        (b"{}" * 100, "damaged"),
    ],
)
def test_other_files_are_rejected(tmp_path: Path, suffix: str, content: bytes, expected: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_checkpoint(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path / "folder.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncation_is_always_found(tmp_path: Path, model: BiPointFlowNet, foreign: Path, suffix: str) -> None:
    content = foreign.read_bytes() if suffix == ".pth" else checkpoint_bytes(model, {})
    path = tmp_path / f"cut{suffix}"
    generator = random.Random(0)
    for length in [1, 7, 8, 9, 100, len(content) - 1, *generator.sample(range(len(content)), 8)]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_bit_flip_in_own_file_is_always_found(tmp_path: Path, model: BiPointFlowNet) -> None:
    content = checkpoint_bytes(model, {"epoch": 1})
    header = 8 + int.from_bytes(content[:8], "little")
    path, generator = tmp_path / "flipped.safetensors", random.Random(1)
    places = [generator.randrange(header) for _ in range(20)] + [
        generator.randrange(header, len(content)) for _ in range(20)
    ]
    path.write_bytes(content)
    read_checkpoint(path)
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            pytest.fail(f"a flip in byte {place} of {len(content)} (header {header}) was read")


def test_compressed_archive_is_refused_unopened(tmp_path: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(foreign) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_checkpoint(path)


@pytest.mark.parametrize("kind", ["expanded", "sparse", "meta", "too wide"])
def test_tensors_without_all_their_values_are_refused(tmp_path: Path, model: BiPointFlowNet, kind: str) -> None:
    state = dict(model.state_dict())
    name = "level1.linear.weight"
    shape = state[name].shape
    state[name] = {
        "expanded": torch.zeros(1).expand(shape),
        "sparse": torch.zeros(shape).to_sparse(),
        "meta": torch.zeros(shape, device="meta"),
        "too wide": torch.zeros(1).expand(10**6, 10**6),
    }[kind]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match="ordinary tensor") as error:
        read_checkpoint(tmp_path / "odd.pth")
    assert name in str(error.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("own", [True, False])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, own: bool) -> None:
    bad = build_model(TINY)
    bad.flow2.fc.weight.data[1, 0] = value
    path = tmp_path / ("bad.safetensors" if own else "bad.pth")
    save_checkpoint(path, bad) if own else torch.save(bad.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"flow2\.fc\.weight contains NaN"):
        load_checkpoint(path)


def test_other_architecture_is_refused_with_counts(tmp_path: Path, model: BiPointFlowNet) -> None:
    path = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(3, 4).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"not a Bi-PointFlowNet.*2 tensors"):
        read_checkpoint(path)
    state = dict(model.state_dict())
    del state["flow0.fc.bias"]
    torch.save({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="1 names missing and 1 unexpected"):
        read_checkpoint(path)
    state = dict(model.state_dict())
    state["level1_0.composed_module.0.bias"] = torch.zeros(99)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"level1_0.composed_module.0.bias has shape \(99,\)"):
        read_checkpoint(path)
    torch.save([1, 2, 3], path)
    with pytest.raises(CheckpointError, match="no state dict"):
        read_checkpoint(path)


def test_misshapen_tensors_are_always_rejected(tmp_path: Path, model: BiPointFlowNet) -> None:
    """Sizes are inferred from the shapes, any of which may be wrong."""
    state = model.state_dict()
    path, generator = tmp_path / "odd.pth", random.Random(2)
    sizing = [
        n
        for n in state
        if n.endswith(("composed_module.0.weight", "mlp_convs.2.weight", "pos1.weight", "level1.linear.weight"))
    ]
    cases = [(sizing[0], shape) for shape in ODD_SHAPES]
    cases += zip([*sizing[1::4], *generator.sample(list(state), 6)], cycle(ODD_SHAPES))
    for name, shape in cases:
        torch.save({**state, name: torch.zeros(shape if state[name].dim() or shape else 1)}, path)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_forced_unsafe_loading_is_refused(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set; unset it"):
        load_checkpoint(foreign)


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2J\nb.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


def resealed(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """A file of ours whose header says something else, with a sha256 that fits."""
    state = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(json.loads(header["__metadata__"]["bpfn"])["about"])
    forged = json.dumps(change(about))
    sealed = json.dumps({"about": forged, "sha256": _digest(state, forged)})
    return safetensors.torch.save(state, {"bpfn": sealed})


@pytest.mark.parametrize(
    "change",
    [
        lambda about: [about],
        lambda about: {key: about[key] for key in about if key != "num_points"},
        lambda about: {**about, "num_points": "many"},
        lambda about: {**about, "num_points": 0},
        lambda about: {**about, "num_points": -5},
        lambda about: {**about, "num_points": 10**30},
        lambda about: {**about, "num_points": 1e300},
        lambda about: {**about, "metadata": [1]},
        lambda about: {key: about[key] for key in about if key != "metadata"},
        lambda about: {**about, "format": "\x1b[31m"},
        lambda about: {**about, "variant": {**about["variant"], "levels": about["variant"]["levels"][:4]}},
        lambda about: {**about, "variant": {**about["variant"], "name": "\x1b[31mx\ny"}},
        lambda about: {**about, "variant": {**about["variant"], "embedding_neighbors": 0}},
        lambda about: {**about, "variant": {**about["variant"], "separable": {"encoder": [5], "estimators": []}}},
        lambda about: {**about, "variant": {**about["variant"], "residual": [1, 2]}},
        lambda about: {**about, "variant": {**about["variant"], "residual": [0, 1, 1, 1]}},
        lambda about: with_level(about, width=10**12),
        lambda about: with_level(about, width=-4),
        lambda about: with_level(about, width="wide"),
        lambda about: with_level(about, width=33),
        lambda about: with_level(about, reduction=0),
    ],
)
def test_forged_header_is_refused(tmp_path: Path, model: BiPointFlowNet, change: Callable[[Any], Any]) -> None:
    path = tmp_path / "forged.safetensors"
    content = checkpoint_bytes(model, {})
    path.write_bytes(resealed(content, change))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "sha256" not in str(caught.value) and str(caught.value).isprintable()


def with_level(about: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    first, *others = about["variant"]["levels"]
    return {**about, "variant": {**about["variant"], "levels": [{**first, **sizes}, *others]}}


@pytest.mark.parametrize("kind", ["complex", "bool", "float8", "nested", "sparse", "csr"])
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, model: BiPointFlowNet, kind: str) -> None:
    state = dict(model.state_dict())
    key, weight = "level0.composed_module.0.weight", state["level0.composed_module.0.weight"]
    state[key] = {
        "complex": lambda: weight.to(torch.complex64),
        "bool": lambda: weight > 0,
        "float8": lambda: weight.to(torch.float8_e4m3fn),
        "nested": lambda: torch.nested.nested_tensor([weight[0], weight[1]]),
        "sparse": weight.to_sparse,
        "csr": lambda: weight.flatten(1).to_sparse_csr(),
    }[kind]()
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "odd.pth")


def test_bytes_are_a_function_of_weights_and_metadata(model: BiPointFlowNet) -> None:
    expected = checkpoint_bytes(model, {"b": 1, "a": 2})
    assert all(checkpoint_bytes(model, {"a": 2, "b": 1}) == expected for _ in range(4))


def test_failed_save_leaves_the_old_file(
    tmp_path: Path, model: BiPointFlowNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="no space left"):
        save_checkpoint(path, model)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
