# SPDX-License-Identifier: MIT
"""The fast network computes what the reference does: outputs, gradients, statistics."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from golden_models import filled_model, pair_of_kind, random_pair
from tiny_world import LEAST, TINY

from bpfn_cli.errors import NonFiniteError, UsageError
from bpfn_cli.models import BiPointFlowNet, build_model, load_checkpoint, save_checkpoint
from bpfn_cli.models.reference import ReferenceNetwork
from bpfn_cli.ops import matrix_precision, neighborhood
from bpfn_cli.precision import Precision
from bpfn_cli.structures import VALUE_FIELDS

TOLERANCE = 1e-9


Clouds = tuple[torch.Tensor, torch.Tensor]


def outputs_and_gradients(
    variant: str, training: bool, network: type[BiPointFlowNet] = BiPointFlowNet, clouds: Clouds | None = None
) -> tuple[dict[str, torch.Tensor], BiPointFlowNet]:
    model = filled_model(variant, network=network).train(training)
    model.encoder_features = True
    output = model(*(clouds or random_pair(batch=2)))
    found = {f"{name}{level}": tensor for name in VALUE_FIELDS for level, tensor in enumerate(getattr(output, name))}
    generator = torch.Generator().manual_seed(1)
    # A fixed random direction, so that no gradient cancels by symmetry.
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).mean() for t in found.values())
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    result = {name: tensor.detach() for name, tensor in found.items()}
    result |= {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    result |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return result, model


def check_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    whole = max(float(value.norm()) for name, value in expected.items() if name.startswith("grad"))
    for name, value in expected.items():
        # A bias before a batch norm has a gradient of zero: rounding is measured against the whole gradient.
        scale = max(float(value.norm()), 1e-3 * whole if name.startswith("grad") else 0.0)
        assert float((found[name] - value).norm()) <= tolerance * scale, name


CASES = [
    ("declinear", True),
    ("declinear34", True),
    ("half_bottleneck", True),
    pytest.param("baseline", False, marks=pytest.mark.slow),
    pytest.param("baseline", True, marks=pytest.mark.slow),
    pytest.param("declinear", False, marks=pytest.mark.slow),
    pytest.param("declinear34", False, marks=pytest.mark.slow),
    pytest.param("half_bottleneck", False, marks=pytest.mark.slow),
    pytest.param("half", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("variant", "training"), CASES)
def test_fast_equals_reference(variant: str, training: bool) -> None:
    fast, _ = outputs_and_gradients(variant, training)
    reference, _ = outputs_and_gradients(variant, training, ReferenceNetwork)
    check_equal(fast, reference, TOLERANCE)


@pytest.mark.parametrize(
    "kind", ["duplicates", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lidar", "far"))]
)
def test_fast_equals_reference_on_clouds_of_every_kind(kind: str) -> None:
    clouds = pair_of_kind(kind)
    fast, _ = outputs_and_gradients("weightnet4", True, clouds=clouds)
    reference, _ = outputs_and_gradients("weightnet4", True, ReferenceNetwork, clouds)
    check_equal(fast, reference, TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["baseline", "declinear"])
def test_fast_network_in_float32_is_as_exact_as_the_reference(variant: str) -> None:
    """What users run, C loops and oneDNN in float32, against the reference in float64.

    The gradient of a maximum jumps when rounding changes the neighbor it is taken from, in either network.
    """
    exact_flow, exact_gradient = flows_and_gradient(variant, torch.float64, ReferenceNetwork)
    errors = {}
    for network in (BiPointFlowNet, ReferenceNetwork):
        flow, gradient = flows_and_gradient(variant, torch.float32, network)
        errors[network] = float((flow.double() - exact_flow).norm() / exact_flow.norm())
        assert float((gradient.double() - exact_gradient).norm() / exact_gradient.norm()) < 1e-2
    assert errors[BiPointFlowNet] < min(2 * errors[ReferenceNetwork], 1e-4)


def flows_and_gradient(
    variant: str, dtype: torch.dtype, network: type[BiPointFlowNet]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all levels and of all parameters, each in one vector."""
    model = filled_model(variant, network=network).to(dtype).train()
    output = model(*[cloud.to(dtype) for cloud in random_pair(batch=2)])
    flows = torch.cat([flow.flatten() for flow in output.flows])
    direction = torch.randn(flows.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (flows @ direction.to(dtype)).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return flows.detach(), gradient


def test_order_of_a_batch_changes_nothing_beyond_rounding() -> None:
    clouds = random_pair(batch=2)
    turned = tuple(cloud.flip(0) for cloud in clouds)
    found = []
    for pair, order in ((clouds, [0, 1]), (turned, [1, 0])):
        model = filled_model("half").train()  # with batch norm, whose statistics are over the batch
        flows = [flow[order] for flow in model(*pair).flows]
        torch.stack([flow.square().sum() for flow in flows]).sum().backward()
        gradients = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({f"flow{level}": flow.detach() for level, flow in enumerate(flows)} | gradients)
    check_equal(*found, 1e-11)


def test_size_of_chunks_changes_nothing_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = outputs_and_gradients("weightnet4", True)
    monkeypatch.setattr(neighborhood, "CHUNK_ELEMENTS", 100_000)
    found, _ = outputs_and_gradients("weightnet4", True)
    check_equal(found, expected, 1e-12)


def test_number_of_threads_changes_nothing_beyond_rounding() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(outputs_and_gradients("weightnet4", True)[0])
    finally:
        torch.set_num_threads(before)
    check_equal(*found, 1e-12)


def test_every_used_parameter_gets_a_gradient() -> None:
    found, model = outputs_and_gradients("half", training=True)
    without = {name for name, _ in model.named_parameters() if f"grad {name}" not in found}
    assert without == {f"cross{level}.bias{number}" for level in range(4) for number in (1, 2)}


@pytest.mark.parametrize(("value", "expected"), [("1", ReferenceNetwork), ("", BiPointFlowNet), ("0", BiPointFlowNet)])
def test_environment_chooses_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, expected: type[BiPointFlowNet]
) -> None:
    monkeypatch.setenv("BPFN_PLAIN", value)
    model = build_model(TINY, LEAST)
    save_checkpoint(tmp_path / "tiny.safetensors", model)
    assert type(model) is type(load_checkpoint(tmp_path / "tiny.safetensors")) is expected


def test_reference_has_the_fast_networks_weights_and_shares_no_geometry() -> None:
    fast, reference = filled_model("weightnet4"), filled_model("weightnet4", seed=1, network=ReferenceNetwork)
    reference.load_state_dict(fast.state_dict())
    clouds = random_pair()
    with torch.no_grad():
        expected, found = fast(*clouds), reference(*clouds)
    assert found.pyramid is None
    assert all(torch.equal(a, b) for a, b in zip(found.bfe_neighbors, expected.bfe_neighbors, strict=True))
    torch.testing.assert_close(found.flows[0], expected.flows[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("network", [BiPointFlowNet, ReferenceNetwork])
def test_encoder_features_are_those_after_the_expansion_of_each_cloud(network: type[BiPointFlowNet]) -> None:
    model, (pc1, pc2) = network(TINY).eval(), random_pair(points=LEAST)
    with torch.no_grad():
        without = model(pc1.float(), pc2.float())
        model.encoder_features = True
        output = model(pc1.float(), pc2.float())
        finest = [model.level0_2(model.level0_1(model.level0(cloud.float()))) for cloud in (pc1, pc2)]
    assert without.encoder_source == without.encoder_target == []
    for found, expected in zip((output.encoder_source, output.encoder_target), finest, strict=True):
        assert torch.allclose(found[0], expected, atol=1e-6)
        assert [x.shape[1] for x in found] == [flow.shape[1] for flow in output.flows]
        assert [x.shape[2] for x in found] == [level.expanded for level in TINY.levels[:4]]
    assert all(torch.equal(a, b) for a, b in zip(without.flows, output.flows, strict=True))


def test_reference_rejects_reduced_precision() -> None:
    network = build_model(TINY, LEAST, network=ReferenceNetwork)
    with matrix_precision(Precision.bf16), pytest.raises(UsageError, match=r"precision bf16: .*unset BPFN_PLAIN"):
        network(*random_pair(LEAST))


def test_pyramid_of_another_network_gives_the_same_output() -> None:
    teacher, student = filled_model("baseline"), filled_model("weightnet4")
    clouds = random_pair()
    with torch.no_grad():
        shared = student(*clouds, pyramid=teacher(*clouds).pyramid)
        own = student(*clouds)
    assert all(torch.equal(a, b) for a, b in zip(shared.flows, own.flows, strict=True))


def test_clouds_of_a_batch_do_not_influence_each_other() -> None:
    model = filled_model("weightnet4")
    pc1, pc2 = random_pair(batch=2)
    with torch.no_grad():
        both, second = model(pc1, pc2).flows[0], model(pc1[1:], pc2[1:]).flows[0]
    torch.testing.assert_close(both[1:], second, rtol=0, atol=1e-9)


def test_a_weight_that_is_not_a_number_does_not_stay_hidden() -> None:
    model = filled_model("weightnet4").float()
    clouds = [cloud.float() for cloud in random_pair()]
    for name in ("level1.weightnet.mlp_convs.0.weight", "cross0.mlp1.0.composed_module.0.weight"):
        weight = dict(model.named_parameters())[name]
        before = weight.detach().clone()
        with torch.no_grad():
            weight[0, 0] = torch.nan
            with suppress(NonFiniteError):  # raised where a cloud was warped by it
                assert torch.isnan(model(*clouds).flows[0]).any()
            weight.copy_(before)
    assert torch.isfinite(model(*clouds).flows[0]).all()


@pytest.mark.parametrize("network", [BiPointFlowNet, ReferenceNetwork])
def test_identical_points_give_finite_flow_and_gradients(network: type[BiPointFlowNet]) -> None:
    torch.manual_seed(0)
    model = network(TINY)
    cloud = torch.full((1, LEAST, 3), 7.5)
    output = model(cloud, cloud + 0.5)
    torch.stack([flow.norm(dim=-1).sum() for flow in output.flows]).sum().backward()
    assert all(torch.isfinite(flow).all() for flow in output.flows)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
def test_network_compiles_into_one_graph_with_the_same_output_and_gradients() -> None:
    torch.manual_seed(0)
    model = BiPointFlowNet(TINY).double()
    clouds = random_pair(LEAST)

    def flow_and_gradients(network: torch.nn.Module) -> list[torch.Tensor]:
        model.zero_grad()
        flow = network(*clouds).flows[0]
        flow.square().sum().backward()
        return [flow.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for found, expected in zip(flow_and_gradients(compiled), flow_and_gradients(model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
