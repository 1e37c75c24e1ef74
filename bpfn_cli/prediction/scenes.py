# SPDX-License-Identifier: MIT
"""Scenes to look at, from pairs of clouds and their flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpfn_cli.data.clouds.pairs import Clouds
from bpfn_cli.prediction.pair import Treatment, predict_pair
from bpfn_cli.shipped import STUDENT
from bpfn_cli.viewing.scene import Scene

if TYPE_CHECKING:
    from bpfn_cli.models.predict import FlowPredictor


def scene_of(clouds: Clouds, name: str, flows: Mapping[str, np.ndarray], frame: str) -> Scene:
    """The scene of a pair. Its first cloud has all rows of the file, with NaN where there is no point.

    Args: flows: name of a network -> (N, 3) metres. frame: of the clouds and flows, as `axes_of` takes it.
    """
    first, second = clouds.first, clouds.second
    points = np.where(first.valid[:, None], first.points, np.nan)
    return Scene(name, points, second.points[second.valid], dict(flows), clouds.truth, clouds.known, frame)


def predict_scene(
    predictors: Mapping[str, FlowPredictor],
    clouds: Clouds,
    name: str,
    treatment: Treatment,
    *,
    flows: Mapping[str, np.ndarray],
    frame: str,
) -> Scene:
    """The scene of a pair with the flow of each network, after the given `flows`. Raises: as `predict_pair`."""
    predicted = {one: predict_pair(predictor, clouds, treatment).flow for one, predictor in predictors.items()}
    return scene_of(clouds, name, {**flows, **predicted}, frame)


def unique_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Short names of files, whole paths where those are the same, and numbers where these are too."""
    names = dict[str, Path]()
    for path in paths:
        short = path.resolve().parent.name if path.name == STUDENT else path.stem
        name, number = next((one for one in (short, str(path)) if one not in names), ""), 2
        while not name or name in names:
            name, number = f"{path} ({number})", number + 1
        names[name] = path
    return names
