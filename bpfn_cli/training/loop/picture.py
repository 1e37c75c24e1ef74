# SPDX-License-Identifier: MIT
"""A picture of a validated scene, for TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from bpfn_cli.data.loader import evaluation_batches
from bpfn_cli.metrics.evaluation import network_flow
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.strategies import Strategy
from bpfn_cli.training.loop.validate import Validator
from bpfn_cli.viewing.scene import Scene
from bpfn_cli.viewing.still import still_png

DOTS_PER_INCH = 100


def picture_of(validator: Validator | None, strategy: Strategy) -> Callable[[], np.ndarray] | None:
    """Draws the first validated scene with the present flow of the student; None: no scene, or no matplotlib."""
    if validator is None or find_spec("matplotlib") is None:
        return None
    return lambda: draw_scene(validator, strategy.student)


def draw_scene(validator: Validator, network: BiPointFlowNet) -> np.ndarray:
    """The first validated scene, as it is validated: (H, W, 3) uint8."""
    from matplotlib.image import imread

    sampled = {"points": validator.recipe.data.points, "batch_size": 1, "seed": validator.recipe.seed}
    batch = next(evaluation_batches(validator.dataset, validator.indices[:1], **sampled))
    flow = network_flow(network, validator.device)(batch)[0].numpy()
    picture = imread(io.BytesIO(still_png(Scene.of_batch(batch, {"student": flow}), DOTS_PER_INCH)))
    return np.asarray(np.round(255 * picture[..., :3]), np.uint8)
