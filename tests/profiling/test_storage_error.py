# SPDX-License-Identifier: MIT
from __future__ import annotations

import torch
from tiny_world import BIG, tiny_network

from bpfn_cli.profiling.storage import storage_error


def test_error_is_measured_and_the_weights_stay() -> None:
    model = tiny_network(2, BIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    coarse, fine, exact = (storage_error(model, storage) for storage in ("int8", "float16", "float32"))
    assert 0 == exact["largest_m"] < fine["mean_m"] < coarse["mean_m"] <= coarse["largest_m"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
