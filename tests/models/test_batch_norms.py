# SPDX-License-Identifier: MIT
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toys import SMALLER, TINY, batch_of, network

from bpfn_cli.models import BiPointFlowNet, Variant, initialize_from
from bpfn_cli.models.batch_norms import neutralize_new_norms
from bpfn_cli.structures import FlowBatch

NORMALIZED = replace(SMALLER, name="normalized", bn=True)
PLAIN = replace(SMALLER, name="plain")


def equal_clouds() -> FlowBatch:
    """Training takes statistics of each cloud alone: here they are those of both."""
    batch = batch_of(2)
    return replace(batch, pc2=batch.pc1)


def flow_of(model: BiPointFlowNet, training: bool) -> Tensor:
    """The finest flow, with the model as it was afterwards."""
    batch = equal_clouds()
    was = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        flow = model.train(training)(batch.pc1, batch.pc2).flows[0]
    model.load_state_dict(was)
    return flow


def sliced(student: Variant) -> BiPointFlowNet:
    """From a network whose own norms, those of the flow estimators, have statistics."""
    teacher, model = network(TINY).train(), network(student, 1)
    with torch.no_grad():
        teacher(batch_of(2).pc1, batch_of(2).pc2)
    initialize_from(model, teacher)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_new_norms_change_nothing(training: bool) -> None:
    expected, model = flow_of(sliced(PLAIN), training), sliced(NORMALIZED)
    changed = neutralize_new_norms(model, [equal_clouds()])
    assert {"cross3.bn1", "level1.weightnet.mlp_bns.0", "flow3.mlp_convs.0.composed_module.1"} <= set(changed)
    assert "flow3.pointconv_list.0.bn_linear" not in changed
    assert (flow_of(model, training) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_new_norms_would_change_the_training() -> None:
    assert not torch.allclose(flow_of(sliced(NORMALIZED), True), flow_of(sliced(PLAIN), True), rtol=0.5, atol=0.05)


def test_statistics_are_those_of_all_batches_and_both_clouds() -> None:
    model, batches = sliced(NORMALIZED), [batch_of(1, seed=3), batch_of(1, seed=4)]
    neutralize_new_norms(model, batches)
    convolution, norm = (model.get_submodule(f"level0.composed_module.{index}") for index in (0, 1))
    points = torch.cat([cloud[0] for batch in batches for cloud in (batch.pc1, batch.pc2)])
    inputs = points @ convolution.weight[:, :, 0].T + convolution.bias  # type: ignore[index, operator]
    torch.testing.assert_close(norm.running_mean, inputs.mean(0).detach())
    torch.testing.assert_close(norm.running_var, inputs.var(0, correction=0).detach())


def test_scales_and_shifts_that_were_trained_without_statistics_are_kept() -> None:
    model = sliced(NORMALIZED)
    with torch.no_grad():  # as the recovery of a pruned network trains them
        for name, parameter in model.named_parameters():
            if ".bn" in name or "_bns." in name or name.endswith("composed_module.1.weight"):
                parameter.uniform_(0.5, 1.5)
    expected = flow_of(model, False)
    assert neutralize_new_norms(model, [equal_clouds()])
    assert (flow_of(model, False) - expected).abs().max() < 1e-3 * expected.abs().max()


def test_norms_with_statistics_stay() -> None:
    model = network(NORMALIZED, 1).train()
    model(batch_of(2).pc1, batch_of(2).pc2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert neutralize_new_norms(model, [batch_of(2)]) == []
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_unused_norms_of_a_network_without_batch_norm_stay() -> None:
    model = network(PLAIN, 1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert neutralize_new_norms(model, [batch_of(2)]) == []
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
