# SPDX-License-Identifier: MIT
"""A scene as one HTML file, which works without a server and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

import bpfn_cli.resources
from bpfn_cli.errors import printable
from bpfn_cli.files import write_atomic
from bpfn_cli.frames import axes_of, describe_frame
from bpfn_cli.viewing import colors
from bpfn_cli.viewing.camera import VERTICAL_FIELD, default_view
from bpfn_cli.viewing.libraries import need_viz
from bpfn_cli.viewing.scene import TRUE_FLOW, Scene

RESOURCES = Path(bpfn_cli.resources.__file__).parent
_ASPECT = 1.6  # of the first view; the page moves away if it is narrower


def write_scene_page(scene: Scene, path: Path) -> None:
    """Write a page that shows a scene, atomically. Raises: UsageError: jinja2 is not installed. DiskError."""
    need_viz("jinja2")
    write_atomic(path, _html(scene).encode())


def _html(scene: Scene) -> str:
    from jinja2 import Environment, StrictUndefined

    template, style, script, three = (
        (RESOURCES / name).read_text(encoding="utf-8")
        for name in ("viewer/scene.html", "viewer/scene.css", "viewer/scene.js", "three/three.min.js")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(
        name=printable(scene.name),
        data=_data(scene),
        style=style,
        scripts=(three, script),
        style_hash=_hash(style),
        script_hashes=[_hash(three), _hash(script)],
        license=(RESOURCES / "three/LICENSE").read_text(encoding="utf-8"),
    )


def _data(scene: Scene) -> dict[str, Any]:
    """What the script of the page reads: numbers as base64 of little-endian float32, colors as bytes."""
    axes = axes_of(scene.frame)
    pc1, pc2 = (np.asarray(cloud, np.float64) @ axes.T for cloud in (scene.pc1, scene.pc2))
    finite = pc1[np.isfinite(pc1).all(axis=1)]
    center = np.median(finite, axis=0) if len(finite) else np.zeros(3)
    view = default_view(finite - center if len(finite) else np.zeros((1, 3)), _ASPECT)
    flows = dict(scene.flows)
    if scene.truth is not None:
        flows[_unused(TRUE_FLOW, flows)] = np.where(scene.known[:, None], scene.truth, np.nan)
    longest_m = colors.flow_scale_m(flows.values())
    errors = {name: scene.errors_m(name) for name in scene.flows if scene.known.any()}
    largest_m = colors.error_scale_m(errors.values())
    return {
        "frame": describe_frame(scene.frame),
        "axes": axes.tolist(),
        "center": center.tolist(),
        "view": {"position": view.position.tolist(), "target": view.target.tolist(), "field": VERTICAL_FIELD},
        "aspect": _ASPECT,
        "pc1": _floats(pc1 - center),
        "pc2": _floats(pc2 - center),
        "panels": [_panel(name, flow @ axes.T, errors.get(name), longest_m, largest_m) for name, flow in flows.items()],
        "unknown": [*colors.UNKNOWN],
        "longest": longest_m,
        "largest": largest_m if errors else None,
        "wheel": _bytes(colors.flow_wheel()),
        "ramp": _bytes(colors.error_ramp()),
    }


def _panel(
    name: str, flow: np.ndarray, errors: np.ndarray | None, longest_m: float, largest_m: float
) -> dict[str, Any]:
    lengths = np.linalg.norm(flow, axis=1)
    lengths = lengths[np.isfinite(lengths)]
    figures = [f"mean flow {lengths.mean():.3f} m"] if len(lengths) else ["no flow"]
    known = np.zeros(0) if errors is None else errors[np.isfinite(errors)]
    if len(known):
        figures.insert(0, f"EPE3D {known.mean():.4f} m")
    return {
        "name": printable(name),
        "figures": ", ".join(figures),
        "flow": _floats(flow),
        "flowColors": _bytes(colors.flow_colors(flow, longest_m)),
        "errors": None if errors is None else _floats(errors),
        "errorColors": None if errors is None else _bytes(colors.error_colors(errors, largest_m)),
    }


def _unused(name: str, taken: dict[str, Any]) -> str:
    while name in taken:
        name += "'"
    return name


def _floats(array: np.ndarray) -> str:
    return _bytes(np.ascontiguousarray(array, "<f4"))


def _bytes(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names a script or style that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
