# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import BIG, tiny_network

from bpfn_cli.errors import CheckpointError, UsageError
from bpfn_cli.models import load_checkpoint, save_checkpoint
from bpfn_cli.models.storage import SCALE, decode, encode


def test_int8_by_hand() -> None:
    state = {"a": torch.tensor([[1.27, -0.4], [0.0, 0.0]]), "b": torch.tensor([0.1]), "n": torch.tensor(3)}
    encoded = encode(state, "int8")
    assert encoded["a"].tolist() == [[127, -40], [0, 0]]
    assert encoded["a"].dtype == torch.int8
    assert set(encoded) == {"a", f"a{SCALE}", "b", "n"}
    decoded = decode(encoded, "file")
    torch.testing.assert_close(decoded["a"], state["a"])
    assert decoded["b"] is state["b"]


@given(scale=st.floats(1e-20, 1e20), seed=st.integers(0, 99))
def test_int8_errs_by_half_a_step_at_most(scale: float, seed: int) -> None:
    weight = scale * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    decoded = decode(encode({"w": weight}, "int8"), "file")["w"]
    steps = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((decoded - weight).abs() <= 0.501 * steps).all()


@pytest.mark.parametrize(
    ("storage", "share", "error"), [("float16", 0.5, 1e-3), ("bfloat16", 0.5, 1e-2), ("int8", 0.25, 1e-2)]
)
def test_files_are_smaller_and_read_as_the_same_network(
    tmp_path: Path, storage: str, share: float, error: float
) -> None:
    model = tiny_network(2, BIG)
    sizes = []
    for kind in ("float32", storage):
        save_checkpoint(tmp_path / f"{kind}.safetensors", model, kind)  # type: ignore[arg-type]
        sizes.append((tmp_path / f"{kind}.safetensors").stat().st_size)
    vectors = sum(4 * tensor.numel() for tensor in model.state_dict().values() if tensor.dim() < 2)
    names = 150 * len(model.state_dict())  # in the header, for scales too
    assert sizes[1] < share * sizes[0] + vectors + names
    read = load_checkpoint(tmp_path / f"{storage}.safetensors")
    assert read.variant == BIG
    for name, tensor in model.state_dict().items():
        largest = tensor.abs().max().clamp_min(1e-6)
        assert (read.state_dict()[name] - tensor).abs().max() <= error * largest
        assert read.state_dict()[name].dtype == tensor.dtype


def test_value_that_float16_does_not_have_is_refused() -> None:
    state = {"norm.running_var": torch.tensor([1.0, 7e4])}
    with pytest.raises(UsageError, match=r"float16: norm\.running_var has values above 65504; use bfloat16 or int8"):
        encode(state, "float16")
    assert encode(state, "bfloat16")["norm.running_var"].isfinite().all()


def test_scales_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    good = encode({"a": torch.ones(2, 3)}, "int8")
    for broken in (
        {"a": good["a"]},
        {**good, f"a{SCALE}": torch.ones(3)},
        {**good, f"b{SCALE}": torch.ones(2)},
        {f"a{SCALE}": torch.ones(2), "a": torch.ones(2, 3)},
    ):
        with pytest.raises(CheckpointError, match=r"file: .* write it again"):
            decode(broken, "file")
