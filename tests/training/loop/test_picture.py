# SPDX-License-Identifier: MIT
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import small_recipe
from tiny_world import LEAST, Scenes, tiny_network

from bpfn_cli.training.loop import picture
from bpfn_cli.training.loop.picture import picture_of
from bpfn_cli.training.loop.validate import Validator
from bpfn_cli.viewing.scene import Scene

pytest.importorskip("matplotlib")


STUDENT: Any = SimpleNamespace(student=tiny_network())


def validator(scenes: Scenes) -> Validator:
    return Validator(scenes, [1], small_recipe(), torch.device("cpu"))  # type: ignore[arg-type]


def test_picture_shows_the_first_validated_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, real = [], picture.still_png

    def keep(scene: Scene, dots_per_inch: int) -> bytes:
        shown.append(scene)
        return real(scene, dots_per_inch)

    monkeypatch.setattr(picture, "still_png", keep)
    draw = picture_of(validator(Scenes()), STUDENT)
    assert draw is not None
    drawn = draw()
    assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3 and drawn.std() > 0
    assert (shown[0].name, len(shown[0].pc1)) == ("0000001", LEAST)
    assert shown[0].truth is not None and shown[0].flows.keys() == {"student"}


def test_scene_without_labels_has_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlabeled(Scenes):
        def load(self, index: int):  # type: ignore[no-untyped-def]
            return replace(super().load(index), flow=None)

    draw = picture_of(validator(Unlabeled(has_flow=False)), STUDENT)
    assert draw is not None and draw().size


def test_without_scenes_or_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    assert picture_of(None, STUDENT) is None
    monkeypatch.setattr(picture, "find_spec", lambda name: None)
    assert picture_of(validator(Scenes()), STUDENT) is None
