# SPDX-License-Identifier: MIT
"""Raw KITTI Scene Flow to scenes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import png
import pytest
from raw_downloads import (
    CAMERA,
    cloud,
    kitti_tree,
    prepare_kitti,
    tree,
    write_png,
)

from bpfn_cli.data.datasets.kitti import kitti_camera
from bpfn_cli.data.prepare.kitti import plan_kitti
from bpfn_cli.data.prepare.projection import back_project
from bpfn_cli.data.prepare.runner import PrepareSummary
from bpfn_cli.errors import DataError
from bpfn_cli.structures import Camera


def test_back_project_inverts_the_projection():
    generator = np.random.default_rng(0)
    u, v, depth = generator.uniform(0, 1200, 50), generator.uniform(0, 370, 50), generator.uniform(2, 80, 50)
    for camera in (CAMERA, kitti_camera(170)):
        x, y, z = back_project(u, v, depth, camera).astype(np.float64).T
        np.testing.assert_allclose((x * camera.focal + camera.cx * z + camera.tx) / (z + camera.tz), u, atol=1e-3)
        np.testing.assert_allclose((y * camera.focal + camera.cy * z + camera.ty) / (z + camera.tz), v, atol=1e-3)


def test_kitti_points_are_those_computed_by_hand(tmp_path):
    source = kitti_tree(tmp_path / "raw", calibration=tmp_path / "raw")
    summary = prepare_kitti(source, tmp_path / "out")
    assert summary == PrepareSummary(scenes=1, skipped=0, points=1, notes=())
    # pixel (2, 1) at Z = 4: x = (2 * 4.5 - 1 * 4 - 20) / -100, y = (1 * 4.5 - 0.5 * 4 + 10) / -100
    assert cloud(tmp_path, "out/000000/pc1.npy") == [pytest.approx([0.15, -0.125, 4], abs=1e-5)]
    # pixel (5, 0.5) at Z = 2: x = (5 * 2.5 - 1 * 2 - 20) / -100, y = (0.5 * 2.5 - 0.5 * 2 + 10) / -100
    assert cloud(tmp_path, "out/000000/pc2.npy") == [pytest.approx([0.095, -0.1025, 2], abs=1e-5)]


def test_kitti_record_says_what_was_prepared(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=3, calibration=tmp_path / "raw")
    prepare_kitti(source, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record == {
        "kind": "kitti",
        "frame": "x left, y up, z forward",
        "source": str(source / "training"),
        "calibration": str(source / "training" / "calib_cam_to_cam"),
        "scenes": 3,
        "points": 3,
    }
    assert sorted(tree(tmp_path / "out")) == [
        *(f"00000{scene}{file}" for scene in range(3) for file in ("", "/pc1.npy", "/pc2.npy")),
        "prepared.json",
    ]


@pytest.mark.parametrize("place", ["raw", "raw_calib", "data_scene_flow_calib"])
def test_kitti_calibration_is_found_in_the_source_or_beside_it(tmp_path, place):
    source = kitti_tree(tmp_path / "raw", calibration=tmp_path / place)
    for number, given in enumerate([source, source / "training"]):
        assert prepare_kitti(given, tmp_path / f"out{number}").notes == ()
        assert cloud(tmp_path, f"out{number}/000000/pc1.npy") == [pytest.approx([0.15, -0.125, 4], abs=1e-5)]


@pytest.mark.parametrize("inner", ["", "training", "training/calib_cam_to_cam"])
def test_kitti_calibration_can_be_given(tmp_path, inner):
    source = kitti_tree(tmp_path / "raw", calibration=tmp_path / "elsewhere")
    summary = prepare_kitti(source, tmp_path / "out", calibration=tmp_path / "elsewhere" / inner)
    assert summary.notes == ()
    assert cloud(tmp_path, "out/000000/pc1.npy") == [pytest.approx([0.15, -0.125, 4], abs=1e-5)]


def test_kitti_scenes_without_calibration_use_the_table_and_say_so(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=2, calibration=tmp_path / "raw")
    (source / "training" / "calib_cam_to_cam" / "000001.txt").unlink()
    (note,) = prepare_kitti(source, tmp_path / "out").notes
    assert note == "1 of 2 scenes have no calibration file; the development kit's P_rect_02 was used: 000001"
    ((_, _, depth),) = cloud(tmp_path, "out/000001/pc1.npy")
    assert depth == pytest.approx(721.5377 * 0.54 / (13.5 + 1e-5))


def test_kitti_calibration_given_but_absent_is_refused(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    with pytest.raises(DataError, match="elsewhere: no training/calib_cam_to_cam"):
        prepare_kitti(source, tmp_path / "out", calibration=tmp_path / "elsewhere")


def test_kitti_damaged_calibration_is_not_replaced_by_the_table(tmp_path):
    source = kitti_tree(tmp_path / "raw", calibration=tmp_path / "raw")
    (source / "training" / "calib_cam_to_cam" / "000000.txt").write_text("P_rect_02: 1")
    with pytest.raises(DataError, match=r"000000\.txt: no rectified P_rect_02"):
        prepare_kitti(source, tmp_path / "out")


def test_kitti_scene_beyond_the_table_is_refused(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=1)
    for image in source.rglob("*.png"):
        image.rename(image.with_name("000200_10.png"))
    with pytest.raises(DataError, match="scene 200"):
        prepare_kitti(source, tmp_path / "out")


def test_kitti_scene_without_any_known_pixel_is_refused(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    write_png(source / "training" / "disp_occ_1" / "000000_10.png", np.zeros((2, 3), int), 16)
    with pytest.raises(DataError, match=r"flow_occ/000000_10\.png: pc1: empty"):
        prepare_kitti(source, tmp_path / "out")


def test_kitti_maps_of_other_sizes_are_refused(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    write_png(source / "training" / "disp_occ_1" / "000000_10.png", np.zeros((3, 3), int), 16)
    with pytest.raises(DataError, match="differ in size \\(3 x 2 and 3 x 3\\)"):
        prepare_kitti(source, tmp_path / "out")


@pytest.mark.realdata
@pytest.mark.parametrize(("scene", "points", "near", "length_m"), [(2, 100480, 40526, 0.375), (3, 94608, 33748, 0.467)])
def test_real_kitti_scenes_have_their_published_counts(real_kitti, scene, points, near, length_m):
    raw, out = real_kitti
    pc1, pc2 = (np.load(out / f"{scene:06d}" / name) for name in ("pc1.npy", "pc2.npy"))
    assert pc1.shape == pc2.shape == (points, 3)
    ground = (pc1[:, 1] < -1.4) & (pc2[:, 1] < -1.4)
    kept = ~ground & (pc1[:, 2] < 35) & (pc2[:, 2] < 35)
    assert kept.sum() == near
    assert np.linalg.norm(pc2[kept] - pc1[kept], axis=1).mean() == pytest.approx(length_m, abs=5e-4)

    image = f"{scene:06d}_10.png"
    maps = [raw_png(raw / "training" / kind / image) for kind in ("disp_occ_0", "disp_occ_1", "flow_occ")]
    known = (maps[0][..., 0] > 0) & (maps[1][..., 0] > 0) & (maps[2][..., 2] == 1)
    moved = projected(pc2, kitti_camera(scene)) - projected(pc1, kitti_camera(scene))
    raw_flow = (maps[2][known][:, :2].astype(np.float64) - 2**15) / 64
    assert np.abs(moved - raw_flow).max() < 0.001


@pytest.fixture(scope="module")
def real_kitti(tmp_path_factory) -> tuple[Path, Path]:
    if "BPFN_REAL_DATA" not in os.environ:
        pytest.skip("BPFN_REAL_DATA, the folder of real samples, is not set")
    raw, out = Path(os.environ["BPFN_REAL_DATA"]) / "kitti_scene_flow", tmp_path_factory.mktemp("kitti")
    summary = prepare_kitti(raw, out)
    assert summary == PrepareSummary(scenes=2, skipped=0, points=100480 + 94608, notes=())
    return raw, out


def raw_png(path: Path) -> np.ndarray:
    width, height, rows, _ = png.Reader(bytes=path.read_bytes()).read()
    return np.array(list(rows)).reshape(height, width, -1)


def projected(points: np.ndarray, camera: Camera) -> np.ndarray:
    x, y, z = points.astype(np.float64).T
    u = (x * camera.focal + camera.cx * z + camera.tx) / (z + camera.tz)
    v = (y * camera.focal + camera.cy * z + camera.ty) / (z + camera.tz)
    return np.stack([u, v], axis=1)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            ["disp_occ_0"],
            r"training: no folder disp_occ_1, flow_occ \(this is the stereo 2015 download\); .*_flow\.zip$",
        ),
        (["image_2"], r"no folder disp_occ_0, disp_occ_1, flow_occ \(this is the download of the images alone\)"),
        (["other"], r"no folder disp_occ_0, disp_occ_1, flow_occ; scene flow 2015 has"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_missing_folders_are_listed_and_another_download_is_named(tmp_path, kept, message, zipped):
    for folder in kept:
        (tmp_path / "raw" / "training" / folder).mkdir(parents=True)
        (tmp_path / "raw" / "training" / folder / "000000_10.png").touch()
    source = tmp_path / "raw"
    if zipped:
        source = Path(shutil.make_archive(str(tmp_path / "raw"), "zip", tmp_path / "raw"))
    with pytest.raises(DataError, match=message):
        plan_kitti(source, tmp_path / "out")


def test_odometry_calibration_is_named(tmp_path):
    source = kitti_tree(tmp_path / "raw", calibration=tmp_path / "raw")
    (tmp_path / "odometry" / "sequences").mkdir(parents=True)
    with pytest.raises(DataError, match="this is the odometry calibration; give the calibration archive"):
        plan_kitti(source, tmp_path / "out", calibration=tmp_path / "odometry")
    text = source / "training" / "calib_cam_to_cam" / "000000.txt"
    text.write_text("P0: 1 0 0 0 0 1 0 0 0 0 1 0\nP2: 1 0 0 0 0 1 0 0 0 0 1 0\n")
    with pytest.raises(DataError, match=r"KITTI odometry or object detection \(P0 to P3\); give calib_cam_to_cam"):
        prepare_kitti(source, tmp_path / "out")
