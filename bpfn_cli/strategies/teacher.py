# SPDX-License-Identifier: MIT
"""The teacher during training: frozen, run once per batch on the student's point pyramid, or read from a cache."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bpfn_cli.losses.features import FIELDS
from bpfn_cli.losses.supervised import at_levels
from bpfn_cli.losses.term import TeacherPasses
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.ops import backward_errors, matrix_precision
from bpfn_cli.precision import Precision
from bpfn_cli.rng import keyed_generator
from bpfn_cli.strategies.teacher_cache import TeacherCache
from bpfn_cli.structures import FlowBatch, FlowPyramid

Control = Callable[[FlowPyramid], FlowPyramid]


class Teacher:
    """A network in evaluation mode from whose outputs a student learns.

    Attributes: forwards: how often the network was run. precision: of its large matrix products. control: applied to
        its outputs before a student sees them (see `CONTROLS`). cache: outputs on disk; None: always computed.
        goes_back: also compute the flow from cloud 2 to cloud 1, for `FlowPyramid.backward_errors`.
    """

    def __init__(
        self,
        network: BiPointFlowNet,
        precision: Precision = Precision.float32,
        control: Control | None = None,
        cache: TeacherCache | None = None,
    ):
        self.network = network.eval().requires_grad_(False)
        self.precision, self.control, self.cache = precision, control, cache
        self.forwards = 0
        self.goes_back = False
        self._last: tuple[FlowBatch, FlowPyramid] | None = None

    def __call__(self, batch: FlowBatch, student: FlowPyramid | None = None) -> FlowPyramid:
        """The outputs on a batch, computed once for the same batch object, on the student's point pyramid if given."""
        if self._last is None or self._last[0] is not batch:
            self._last = None  # free the memory first
            self._last = batch, self._outputs(batch, student)
        return self._last[1]

    def passes(self, batches: Callable[[], Iterable[FlowBatch]]) -> TeacherPasses:
        """Passes over the batches, as `Objective.prepare` takes them."""

        def one_pass() -> Iterator[tuple[FlowPyramid, FlowBatch]]:
            for batch in batches():
                yield self(batch), batch

        return one_pass

    def begin_epoch(self) -> None:
        """Let the cache verify one sample again."""
        if self.cache is not None:
            self.cache.is_verified = False

    def counts(self) -> list[int]:
        """Number of forward passes, cache hits and cache misses."""
        cache = self.cache
        return [self.forwards, *((0, 0) if cache is None else (cache.found, cache.missed))]

    def set_counts(self, counts: list[int]) -> None:
        """Restore the counts of a resumed training."""
        self.forwards = counts[0]
        if self.cache is not None:
            self.cache.found, self.cache.missed = counts[1:]

    def forget(self) -> None:
        """Compute again at the next call, even for the same batch."""
        self._last = None

    def compute(self, batch: FlowBatch, student: FlowPyramid | None = None) -> FlowPyramid:
        """The network's outputs without cache and control; with gradients if they are enabled."""
        self.forwards += 1
        with matrix_precision(self.precision):
            output = self.network(batch.pc1, batch.pc2, pyramid=None if student is None else student.pyramid)
            return self._with_backward_errors(output, batch) if self.goes_back else output

    @torch.no_grad()
    def _with_backward_errors(self, output: FlowPyramid, batch: FlowBatch) -> FlowPyramid:
        self.forwards += 1
        backward = self.network(batch.pc2, batch.pc1).flows[0]
        errors = backward_errors(batch.pc1, output.flows[0], batch.pc2, backward)
        return replace(output, backward_errors=at_levels(output, errors[..., None]))

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Enable gradients of the network's parameters in the block; afterwards its outputs are computed again."""
        self.network.requires_grad_(True)
        try:
            yield
        finally:
            self.network.requires_grad_(False)
            self._last = None

    def _outputs(self, batch: FlowBatch, student: FlowPyramid | None) -> FlowPyramid:
        with torch.no_grad():
            if self.cache is None or student is None:
                output = self.compute(batch, student)
            else:
                output = self.cache.outputs(batch, student, self.compute)
            return output if self.control is None else self.control(output)


def shuffle_points(output: FlowPyramid) -> FlowPyramid:
    """The outputs with the points of each level permuted, always in the same way: a control. Such a teacher knows
    nothing about single points, so learning from it must not help."""

    def permuted(level: int, tensor: Tensor) -> Tensor:
        order = torch.from_numpy(keyed_generator("shuffle", level).permutation(tensor.shape[1]))
        return tensor[:, order.to(tensor.device)]

    return output.mapped(permuted)


def random_adapter(output: FlowPyramid) -> FlowPyramid:
    """The outputs with all features passed through fixed random linear maps, and the same flows: a control. A hint
    from such a teacher holds no more than a random projection of its features."""
    adapted = {
        field: [tensor @ _random_map(field, level, tensor.shape[2]).to(tensor) for level, tensor in enumerate(levels)]
        for field in FIELDS.values()
        if (levels := getattr(output, field))
    }
    return replace(output, **adapted)  # type: ignore[arg-type]


@cache
def _random_map(field: str, level: int, width: int) -> Tensor:
    """(width, width), columns of length 1: independent channels of equal variance keep their mean square."""
    columns = keyed_generator("adapter", field, level).standard_normal((width, width))
    return torch.from_numpy(columns / np.linalg.norm(columns, axis=0))


# What a recipe's `control` does to the teacher's outputs.
CONTROLS: dict[str, Control] = {"shuffled": shuffle_points, "random_adapter": random_adapter}
