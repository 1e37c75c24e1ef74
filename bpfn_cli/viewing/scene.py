# SPDX-License-Identifier: MIT
"""A pair of clouds with the flows to look at."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bpfn_cli.errors import ShapeError, printable
from bpfn_cli.frames import INTERNAL, axes_of
from bpfn_cli.structures import FlowBatch

TRUE_FLOW = "true flow"


@dataclass(frozen=True)
class Scene:
    """Two clouds, and flows of the first one.

    Attributes:
        name: shown as title. pc1, pc2: (N, 3), (M, 3) float32 metres; N, M >= 1.
        flows: name of a network -> (N, 3) metres; NaN: no prediction.
        truth: (N, 3) metres, the true flow; None: unknown.
        mask: (N,) bool, where the true flow is known; None: everywhere.
        frame: of all of these, as `axes_of` takes it.
    Raises: ShapeError: other shapes. UsageError: an unknown frame.
    """

    name: str
    pc1: np.ndarray
    pc2: np.ndarray
    flows: dict[str, np.ndarray] = field(default_factory=dict)
    truth: np.ndarray | None = None
    mask: np.ndarray | None = None
    frame: str = INTERNAL

    def __post_init__(self) -> None:
        axes_of(self.frame)
        count = len(self.pc1)
        expected: dict[str, tuple[np.ndarray, tuple[int, ...]]]
        expected = {f"flow {name}": (flow, (count, 3)) for name, flow in self.flows.items()}
        expected |= {"pc1": (self.pc1, (count, 3)), "pc2": (self.pc2, (len(self.pc2), 3))}
        if self.truth is not None:
            expected["true flow"] = self.truth, (count, 3)
        if self.mask is not None:
            expected["mask"] = self.mask, (count,)
        for name, (array, shape) in expected.items():
            if array.shape != shape or not len(array):
                raise ShapeError(f"{printable(name)}: shape {array.shape} found, {shape} expected")

    @classmethod
    def of_batch(cls, batch: FlowBatch, flows: dict[str, np.ndarray]) -> Scene:
        """The first scene of a batch, in internal axes. Args: flows: name of a network -> (N, 3) metres."""
        truth, mask = (None if part is None else part[0].numpy() for part in (batch.flow, batch.valid))
        return cls(batch.names[0], batch.pc1[0].numpy(), batch.pc2[0].numpy(), flows, truth, mask)

    @property
    def known(self) -> np.ndarray:
        """(N,) bool, where the true flow is known and finite."""
        if self.truth is None:
            return np.zeros(len(self.pc1), bool)
        finite = np.asarray(np.isfinite(self.truth).all(axis=1))
        return finite if self.mask is None else finite & self.mask

    def errors_m(self, name: str) -> np.ndarray:
        """(N,) float32: the length of the error of a flow in metres; NaN where it or the true flow is unknown."""
        errors = np.full(len(self.pc1), np.nan, np.float32)
        if self.truth is not None:
            known = self.known & np.isfinite(self.flows[name]).all(axis=1)
            errors[known] = np.linalg.norm(self.flows[name][known] - self.truth[known], axis=1)
        return errors
