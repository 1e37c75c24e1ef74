# SPDX-License-Identifier: MIT
"""A scene as one HTML file, which works without a server and fetches nothing."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.errors import printable
from bpfn_cli.files import write_atomic
from bpfn_cli.frames import axes_of
from bpfn_cli.viewing import colors
from bpfn_cli.viewing.camera import VERTICAL_FIELD, View
from bpfn_cli.viewing.libraries import need_viz
from bpfn_cli.viewing.panels import Panel, Panels
from bpfn_cli.viewing.scene import Scene
from bpfn_cli.viewing.template import render, resource

_ASPECTS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # of panels that have a first view of their own


def write_scene_page(scene: Scene, path: Path) -> None:
    """Write a page that shows a scene, atomically. Raises: UsageError: jinja2 is not installed. DiskError."""
    need_viz("jinja2")
    write_atomic(path, _html(scene).encode())


def _html(scene: Scene) -> str:
    return render(
        "viewer/scene.html",
        "viewer/scene.css",
        ["three/three.min.js", "viewer/scene.js"],
        name=printable(scene.name),
        data=_data(scene),
        license=resource("three/LICENSE"),
    )


def _data(scene: Scene) -> dict[str, Any]:
    """What the script of the page reads: numbers as base64 of little-endian float32, colors as bytes."""
    drawn = Panels.of(scene)
    return {
        "axes": axes_of(scene.frame).tolist(),
        "center": drawn.center.tolist(),
        "field": VERTICAL_FIELD,
        "views": [_view(drawn.view(aspect), aspect) for aspect in _ASPECTS],
        "aspect": drawn.aspect,
        "pc1": _floats(drawn.pc1 - drawn.center),
        "pc2": _floats(drawn.pc2 - drawn.center),
        "panels": [_panel(panel, drawn) for panel in drawn.flows],
        "unknown": [*colors.UNKNOWN],
        "longest": drawn.longest_m,
        "longestOwn": drawn.longest_own_m,
        "largest": drawn.largest_m,
        "wheel": _bytes(colors.flow_wheel()),
        "ramp": _bytes(colors.error_ramp()),
    }


def _view(view: View, aspect: float) -> dict[str, Any]:
    return {"aspect": aspect, "position": view.position.tolist(), "target": view.target.tolist()}


def _panel(panel: Panel, drawn: Panels) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": panel.name,
        "figures": panel.figures,
        "flow": _floats(panel.flow),
        "flowColors": _bytes(colors.flow_colors(panel.flow, drawn.longest_m)),
        "ownColors": _bytes(colors.flow_colors(panel.own, drawn.longest_own_m)),
    }
    if panel.errors is not None and drawn.largest_m is not None:
        data |= {
            "errors": _floats(panel.errors),
            "errorColors": _bytes(colors.error_colors(panel.errors, drawn.largest_m)),
        }
    return data


def _floats(array: np.ndarray) -> str:
    return _bytes(np.ascontiguousarray(array, "<f4"))


def _bytes(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
