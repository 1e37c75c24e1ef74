# SPDX-License-Identifier: MIT
"""Parameters and MACs of a network, without running it on data.

The published operations are counted, so `ReferenceNetwork` runs: on the meta device (shapes only) for module MACs, on
the CPU for fvcore, whose tracer turns sizes into tensors that the meta device rejects.
"""

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.models import BiPointFlowNet, build_model
from bpfn_cli.models.checkpoint import checkpoint_bytes
from bpfn_cli.models.reference import MOST_PLAIN_POINTS, ReferenceNetwork
from bpfn_cli.models.variants import Variant
from bpfn_cli.structures import FlowPyramid


@dataclass(frozen=True)
class LevelProfile:
    """One pyramid level: the layers with its number in their names (`deconv4_3` belongs to level 3)."""

    level: int
    points: int
    parameters: int
    module_macs: int
    operator_macs: int | None


@dataclass(frozen=True)
class Profile:
    """What a network costs for one pair of clouds, batch 1.

    Attributes:
        points: per cloud.
        parameters: all of them; unused_parameters: those that no forward pass reads (also in the published checkpoint).
        module_macs: the convention of the published tables: over every call of a convolution or linear module, its
            multiply-accumulates plus one per output element with bias; plus one per output element of ReLU and
            LeakyReLU modules. Matrix products outside modules are not counted.
        operator_macs: fvcore's count, including PointConv's aggregation product but not element-wise products and
            the weighted sums of interpolation (0.1 %). Not comparable with `module_macs`. None: more than
            MOST_PLAIN_POINTS, since fvcore runs the plain network.
        checkpoint_bytes: size of the file.
        uncounted: operators that fvcore could not count, and how often each was called.
    """

    variant: str
    points: int
    parameters: int
    unused_parameters: int
    module_macs: int
    operator_macs: int | None
    checkpoint_bytes: int
    levels: tuple[LevelProfile, ...]
    uncounted: dict[str, int]


def profile_model(variant: Variant, points: int = PUBLISHED_POINTS, *, file_bytes: int | None = None) -> Profile:
    """Count the parameters and MACs of a variant at `points` points per cloud.

    Args: file_bytes: size of the checkpoint it was read from; None: of the file we would write.
    Raises: UsageError: fewer points than the variant needs.
    """
    counts = count_modules(variant, points)
    deployed = build_model(variant, points, network=ReferenceNetwork).eval()
    by_level, uncounted = _operator_macs(deployed) if points <= MOST_PLAIN_POINTS else (None, {})
    return Profile(
        variant=variant.name,
        points=points,
        parameters=counts.parameters.total(),
        unused_parameters=counts.unused_parameters,
        module_macs=counts.macs.total(),
        operator_macs=None if by_level is None else by_level.total(),
        checkpoint_bytes=len(checkpoint_bytes(deployed, {})) if file_bytes is None else file_bytes,
        levels=tuple(
            LevelProfile(
                level, size, counts.parameters[level], counts.macs[level], None if by_level is None else by_level[level]
            )
            for level, size in enumerate(counts.points)
        ),
        uncounted=uncounted,
    )


@dataclass(frozen=True)
class ModuleCounts:
    """Points, parameters and module MACs by level, and the number of unused parameters."""

    points: tuple[int, ...]
    parameters: Counter[int]
    macs: Counter[int]
    unused_parameters: int


@lru_cache(maxsize=16)
def count_modules(variant: Variant, points: int = PUBLISHED_POINTS) -> ModuleCounts:
    """The part of `profile_model` that computes shapes only and takes a fraction of a second."""
    with torch.device("meta"):
        model = build_model(variant, points, network=ReferenceNetwork).eval()
        clouds = torch.empty(1, points, 3), torch.empty(1, points, 3)
    macs, output = _module_macs(model, clouds)
    parameters = Counter[int]()
    for name, parameter in model.named_parameters():
        parameters[level_of(name)] += parameter.numel()
    sizes = (points, *(indices.shape[1] for indices in output.sample_indices1.values()))
    return ModuleCounts(sizes, parameters, macs, _unused_parameters(model, output.flows[0]))


@dataclass(frozen=True)
class TensorSize:
    """A tensor of a network's state dict. buffer: not trained, such as the running statistics of a batch norm."""

    elements: int
    name: str
    shape: tuple[int, ...]
    kind: Literal["parameter", "buffer"]


def list_tensors(variant: Variant) -> list[TensorSize]:
    """All tensors of a variant, in the order of its layers; a checkpoint of these sizes holds exactly these."""
    with torch.device("meta"):
        model = BiPointFlowNet(variant)
    trained = dict(model.named_parameters())
    return [
        TensorSize(tensor.numel(), name, tuple(tensor.shape), "parameter" if name in trained else "buffer")
        for name, tensor in model.state_dict().items()
    ]


def tensor_totals(tensors: Iterable[TensorSize]) -> dict[str, int]:
    """Numbers of elements: of parameters, of buffers, and in all."""
    counts = Counter[str]()
    for one in tensors:
        counts[one.kind] += one.elements
    return {"parameter": counts["parameter"], "buffer": counts["buffer"], "total": counts.total()}


def level_of(name: str) -> int:
    """The pyramid level of a layer, by its name: `level1_0.*` is 1, `deconv3_2.*` is 2, `cross0.*` is 0."""
    found = re.match(r"deconv\d_(\d)|(?:level|cross|flow)(\d)", name)
    if found is None:
        raise AssertionError(f"{name} belongs to no level")
    return int(found[1] or found[2])


def macs_of_call(module: nn.Module, output: Tensor) -> int:
    """Multiply-accumulates of one call of a leaf module, in the published convention; 0 for other kinds."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        per_output = module.weight[0].numel() + (module.bias is not None)
        return output.numel() * per_output
    return output.numel() if isinstance(module, nn.ReLU | nn.LeakyReLU) else 0


def _module_macs(model: BiPointFlowNet, clouds: tuple[Tensor, Tensor]) -> tuple[Counter[int], FlowPyramid]:
    macs, handles = Counter[int](), []
    for name, module in model.named_modules():
        if not list(module.children()):

            def count(module: nn.Module, _: Any, output: Tensor, level: int = level_of(name)) -> None:
                macs[level] += macs_of_call(module, output)

            handles.append(module.register_forward_hook(count))
    output = model(*clouds)
    for handle in handles:
        handle.remove()
    return macs, output


def _unused_parameters(model: BiPointFlowNet, flow: Tensor) -> int:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(flow.sum(), parameters, allow_unused=True)
    return sum(p.numel() for p, gradient in zip(parameters, gradients, strict=True) if gradient is None)


def _operator_macs(model: BiPointFlowNet) -> tuple[Counter[int], dict[str, int]]:
    with _quiet():
        from fvcore.nn import FlopCountAnalysis

    clouds = torch.rand(2, 1, model.num_points, 3, generator=torch.Generator().manual_seed(0)).unbind()
    with _quiet(), torch.no_grad():
        analysis = FlopCountAnalysis(_Flow(model), clouds)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        # Neighbor search and sampling compare numbers: they are listed as uncounted instead of given a made-up number.
        by_module = analysis.by_module()
        uncounted = {name: int(count) for name, count in sorted(analysis.unsupported_ops().items())}
    macs = Counter[int]()
    for name, _ in model.named_children():
        macs[level_of(name)] += int(by_module[f"model.{name}"])
    return macs, uncounted


class _Flow(nn.Module):
    """The network as fvcore needs it: tensors in, one tensor out."""

    def __init__(self, model: BiPointFlowNet):
        super().__init__()
        self.model = model

    def forward(self, pc1: Tensor, pc2: Tensor) -> Tensor:
        return self.model(pc1, pc2).flows[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's warnings about Python control flow, which depends on sizes only here."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
