# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from bpfn_cli.data.datasets.kitti import (
    baseline_m,
    camera_from_projection,
    evaluation_scenes,
    kitti_camera,
    parse_calibration,
)
from bpfn_cli.errors import DataError
from bpfn_cli.structures import Camera

LINE = "P_rect_02: 7.0e+02 0 6.0e+02 4.5e+01 0 7.0e+02 1.7e+02 -0.2 0 0 1 2.7e-03"


def test_evaluation_scenes_are_the_142_of_the_papers():
    scenes = evaluation_scenes()
    assert len(scenes) == len(set(scenes)) == 142
    assert scenes[:3] == (2, 3, 7)
    assert scenes[-1] == 199
    assert list(scenes) == sorted(scenes)


def test_baseline_is_54_centimetres():
    assert baseline_m() == 0.54


@pytest.mark.parametrize(
    ("scene", "focal", "tz"),
    [
        (0, -721.5377, 0.002745884),
        (154, -721.5377, 0.002745884),
        (155, -707.0493, 0.004981016),
        (199, -718.856, 0.003779761),
    ],
)
def test_camera_is_that_of_the_scenes_recording_date(scene, focal, tz):
    camera = kitti_camera(scene)
    assert camera.focal == focal
    assert camera.tz == tz


def test_every_scene_has_a_camera():
    assert {kitti_camera(scene).focal for scene in range(200)} == {-721.5377, -707.0493, -718.3351, -718.856}


@pytest.mark.parametrize("scene", [-1, 200])
def test_other_scenes_have_no_camera(scene):
    with pytest.raises(DataError, match="scenes 0 to 199"):
        kitti_camera(scene)


def test_calibration_file_gives_the_camera():
    text = f"calib_time: 09-Jan-2012 13:57:47\nP_rect_01: 1 2 3\n{LINE}\nP_rect_03: 4\n"
    assert parse_calibration(bytearray(text.encode()), "000000.txt") == Camera(-700.0, 600.0, 170.0, 45.0, -0.2, 0.0027)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "P_rect_01: 1 2 3\n",
        LINE + "\n" + LINE,
        LINE + " 5",
        LINE.removesuffix(" 2.7e-03"),
        LINE.replace("-0.2", "nan"),
        LINE.replace("-0.2", "x"),
        LINE.replace("7.0e+02 1.7", "6.9e+02 1.7"),
        LINE.replace("7.0e+02", "-7.0e+02"),
        LINE.replace("0 0 1", "0 0 2"),
        LINE.replace(" 0 6.0e+02", " 3 6.0e+02"),
        "\x00\xff",
    ],
)
def test_calibration_without_a_rectified_projection_is_refused(text):
    with pytest.raises(DataError, match=r"000000\.txt: no rectified P_rect_02"):
        parse_calibration(bytearray(text.encode()), "000000.txt")


def test_projection_of_too_few_numbers_is_refused():
    with pytest.raises(ValueError, match="not"):
        camera_from_projection([1.0, 2.0])
