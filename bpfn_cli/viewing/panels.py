# SPDX-License-Identifier: MIT
"""A scene made ready for drawing: internal axes, one panel for each flow, common scales, and a view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bpfn_cli.errors import printable
from bpfn_cli.frames import axes_of
from bpfn_cli.viewing.camera import View, default_view, natural_aspect
from bpfn_cli.viewing.colors import error_scale_m, flow_scale_m
from bpfn_cli.viewing.scene import TRUE_FLOW, Scene


@dataclass(frozen=True)
class Panel:
    """A flow and its errors, by point of the first cloud; NaN: unknown.

    Attributes: name: printable. flow: (N, 3) metres, internal axes. own: (N, 3) metres, the flow without the rigid
        motion that most points share, as the sensor's. errors: (N,) metres; None: no true flow. is_truth: whether it is
        the true flow.
    """

    name: str
    flow: np.ndarray
    own: np.ndarray
    errors: np.ndarray | None = None
    is_truth: bool = False

    @property
    def figures(self) -> str:
        """Means over the points where they are known, in one line."""
        lengths = np.linalg.norm(self.flow, axis=1)
        lengths = lengths[np.isfinite(lengths)]
        means = [f"mean flow {lengths.mean():.3f} m"] if len(lengths) else ["no flow"]
        if self.errors is not None and not self.is_truth and np.isfinite(self.errors).any():
            means.insert(0, f"EPE3D {np.nanmean(self.errors):.4f} m")
        return ", ".join(means)


@dataclass(frozen=True)
class Panels:
    """What is drawn of a scene.

    Attributes: pc1, pc2: (N, 3), (M, 3) float64 metres, internal axes; NaN in `pc1`: no point. flows: of the networks,
        then the true flow, if known. longest_m, longest_own_m, largest_m: ends of the scales of the flow, of the flow
        without the shared motion, and of the error; None: no error is known. center: in the middle of `pc1`. aspect:
        width by height that suits the clouds.
    """

    pc1: np.ndarray
    pc2: np.ndarray
    flows: tuple[Panel, ...]
    longest_m: float
    longest_own_m: float
    largest_m: float | None
    center: np.ndarray
    aspect: float

    @classmethod
    def of(cls, scene: Scene) -> Panels:
        axes = axes_of(scene.frame)
        pc1, pc2 = (_finite_or_nan(cloud) @ axes.T for cloud in (scene.pc1, scene.pc2))
        errors = {name: scene.errors_m(name) for name in scene.flows} if scene.known.any() else {}
        flows = [
            _panel(printable(name), pc1, _finite_or_nan(flow) @ axes.T, errors.get(name))
            for name, flow in scene.flows.items()
        ]
        if scene.truth is not None:
            truth = np.where(scene.known[:, None], scene.truth, np.nan)
            exact = np.where(scene.known, 0.0, np.nan) if errors else None
            flows.append(_panel(TRUE_FLOW, pc1, _finite_or_nan(truth) @ axes.T, exact, is_truth=True))
        points = _rows(pc1)
        center = np.median(points, axis=0) if len(points) else np.zeros(3)
        return cls(
            pc1,
            _rows(pc2),
            tuple(flows),
            flow_scale_m([panel.flow for panel in flows]),
            flow_scale_m([panel.own for panel in flows]),
            error_scale_m(errors.values()) if errors else None,
            center,
            natural_aspect(points - center),
        )

    def view(self, aspect: float) -> View:
        """The first view, on points from which `center` is subtracted. Args: aspect: of the picture."""
        return default_view(_rows(self.pc1) - self.center, aspect)


def _panel(name: str, pc1: np.ndarray, flow: np.ndarray, errors: np.ndarray | None, is_truth: bool = False) -> Panel:
    own, known = np.full_like(flow, np.nan), np.isfinite(pc1 + flow).all(axis=1)
    if known.any():
        own[known] = _own_motion(pc1[known] - pc1[known].mean(axis=0), flow[known])  # map coordinates are large
    return Panel(name, flow, own, errors, is_truth)


def _own_motion(points: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """(N, 3) metres: the flow without the rigid motion that most points share."""
    import torch

    from bpfn_cli.ops import shared_motion

    rotation, translation, _ = shared_motion(torch.from_numpy(points), torch.from_numpy(flow))
    shared: np.ndarray = points @ rotation.numpy().T + translation.numpy() - points
    return flow - shared


def _finite_or_nan(rows: np.ndarray) -> np.ndarray:
    """(N, 3) float64."""
    return np.where(np.isfinite(rows).all(axis=1)[:, None], rows, np.nan).astype(np.float64)


def _rows(points: np.ndarray) -> np.ndarray:
    return points[np.isfinite(points).all(axis=1)]
