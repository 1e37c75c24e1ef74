# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import png
import pytest

from bpfn_cli import files
from bpfn_cli.data.datasets.kitti import kitti_camera
from bpfn_cli.data.files import npy as arrays
from bpfn_cli.data.prepare import scene as scenes_module
from bpfn_cli.data.prepare.flyingthings3d import plan_flyingthings3d
from bpfn_cli.data.prepare.kitti import plan_kitti
from bpfn_cli.data.prepare.projection import back_project
from bpfn_cli.data.prepare.runner import PrepareSummary, prepare
from bpfn_cli.errors import BusyError, DataError, DiskError, UsageError
from bpfn_cli.locks import only_writer
from bpfn_cli.structures import Camera


def prepare_kitti(source: Path, out: Path, calibration: Path | None = None, **how: Any) -> PrepareSummary:
    return prepare(plan_kitti(source, out, calibration=calibration), **how)


def prepare_flyingthings3d(source: Path, out: Path, processes: int = 1, **options: Any) -> PrepareSummary:
    return prepare(plan_flyingthings3d(source, out, **options), processes=processes)


# --- raw trees made by hand ----------------------------------------------------------------------

CAMERA = Camera(focal=-100.0, cx=1.0, cy=0.5, tx=20.0, ty=-10.0, tz=0.5)
CALIBRATION = "P_rect_02: 100 0 1 20 0 100 0.5 -10 0 0 1 0.5\n"


def write_png(path: Path, rows: np.ndarray, bits: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = rows.ndim == 2
    buffer = io.BytesIO()
    writer = png.Writer(rows.shape[1], rows.shape[0], greyscale=grey, bitdepth=bits)
    writer.write(buffer, rows.reshape(rows.shape[0], -1).tolist())
    path.write_bytes(buffer.getvalue())


def kitti_tree(root: Path, scenes: int = 1, calibration: Path | None = None) -> Path:
    """Scenes of 3 x 2 pixels; in each, pixel (2, 1) is known, at 4 m and then at 2 m, moving by (3, -0.5)."""
    disparity1, disparity2 = np.zeros((2, 3), int), np.zeros((2, 3), int)
    flow = np.zeros((2, 3, 3), int)
    disparity1[1, 2], disparity2[1, 2], flow[1, 2] = 13.5 * 256, 27 * 256, [32768 + 3 * 64, 32768 - 32, 1]
    disparity1[0], disparity2[0], flow[0, :, 2] = [9, 9, 0], [0, 9, 9], [1, 0, 1]  # known in two maps only
    for scene in range(scenes):
        image = f"{scene:06d}_10.png"
        write_png(root / "training" / "disp_occ_0" / image, disparity1, 16)
        write_png(root / "training" / "disp_occ_1" / image, disparity2, 16)
        write_png(root / "training" / "flow_occ" / image, flow, 16)
        if calibration:
            text = calibration / "training" / "calib_cam_to_cam" / f"{scene:06d}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(CALIBRATION)
    return root


def write_pfm(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    path.write_bytes(f"Pf\n{width} {height}\n-1\n".encode() + values[::-1].astype("<f4").tobytes())


def write_flo(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = values.shape
    path.write_bytes(b"PIEH" + struct.pack("<ii", width, height) + values.astype("<f4").tobytes())


def flyingthings3d_scene(split: Path, name: str = "0000000", sign: int = -1, **changes: np.ndarray) -> None:
    """A row of 4 pixels, all visible: at 10 m and then 5 m, moving by (10.5, -21); `changes` replace maps."""
    maps = {
        "disparity": np.full((1, 4), 105.0),
        "change": np.full((1, 4), 105.0),
        "flow": np.full((1, 4, 2), [10.5, -21.0]),
        "disparity_occluded": np.zeros((1, 4), int),
        "flow_occluded": np.zeros((1, 4), int),
        **changes,
    }
    write_pfm(split / "disparity" / "left" / f"{name}.pfm", sign * maps["disparity"])
    write_pfm(split / "disparity_change" / "left" / "into_future" / f"{name}.pfm", sign * maps["change"])
    write_flo(split / "flow" / "left" / "into_future" / f"{name}.flo", maps["flow"])
    write_png(split / "disparity_occlusions" / "left" / f"{name}.png", maps["disparity_occluded"], 1)
    write_png(split / "flow_occlusions" / "left" / "into_future" / f"{name}.png", maps["flow_occluded"], 8)


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def cloud(*parts: str | Path) -> list[list[float]]:
    array = np.load(Path(*parts))
    assert array.dtype == np.float32
    return array.tolist()


# --- geometry ------------------------------------------------------------------------------------


def test_back_project_inverts_the_projection():
    generator = np.random.default_rng(0)
    u, v, depth = generator.uniform(0, 1200, 50), generator.uniform(0, 370, 50), generator.uniform(2, 80, 50)
    for camera in (CAMERA, kitti_camera(170)):
        x, y, z = back_project(u, v, depth, camera).astype(np.float64).T
        np.testing.assert_allclose((x * camera.focal + camera.cx * z + camera.tx) / (z + camera.tz), u, atol=1e-3)
        np.testing.assert_allclose((y * camera.focal + camera.cy * z + camera.ty) / (z + camera.tz), v, atol=1e-3)


# --- KITTI ---------------------------------------------------------------------------------------


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


# --- FlyingThings3D ------------------------------------------------------------------------------


def test_flyingthings3d_points_are_those_computed_by_hand(tmp_path):
    flyingthings3d_scene(tmp_path / "raw" / "train")
    summary = prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")
    assert summary == PrepareSummary(scenes=1, skipped=0, points=4, notes=())
    # pixel (0, 0) at 10 m: x = (0 - 479.5) * 10 / 1050 to the right, y = -(0 - 269.5) * 10 / 1050 up
    assert cloud(tmp_path, "out/train/0000000/pc1.npy")[0] == pytest.approx([-4.5666667, 2.5666667, -10])
    assert cloud(tmp_path, "out/train/0000000/pc1.npy")[3] == pytest.approx([-4.5380952, 2.5666667, -10])
    # pixel (10.5, -21) at 5 m: x = (10.5 - 479.5) * 5 / 1050, y = -(-21 - 269.5) * 5 / 1050
    assert cloud(tmp_path, "out/train/0000000/pc2.npy")[0] == pytest.approx([-2.2333333, 1.3833333, -5])


def test_flyingthings3d_signs_of_both_releases_give_the_same_bytes(tmp_path):
    change = np.array([[105.0, -35.0, 0.0, 5.0]])
    for release, sign in (("subset", -1), ("full", 1)):
        flyingthings3d_scene(tmp_path / release / "val", sign=sign, change=change)
        prepare_flyingthings3d(tmp_path / release, tmp_path / f"{release}_out")
    prepared = [tree(tmp_path / f"{release}_out" / "val") for release in ("subset", "full")]
    assert prepared[0] == prepared[1]
    depths = [-z for _, _, z in cloud(tmp_path, "subset_out/val/0000000/pc2.npy")]
    assert depths == pytest.approx([5, 15, 10, 1050 / 110])


def test_flyingthings3d_keeps_pixels_visible_in_both_maps(tmp_path):
    flyingthings3d_scene(
        tmp_path / "raw" / "train",
        disparity=np.array([[105.0, 106.0, 107.0, 108.0]]),
        disparity_occluded=np.array([[0, 1, 0, 0]]),
        flow_occluded=np.array([[255, 0, 0, 1]]),
    )
    prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")
    assert [-z for _, _, z in cloud(tmp_path, "out/train/0000000/pc1.npy")] == pytest.approx([1050 / 107])


@pytest.mark.parametrize(
    ("near", "depths"), [(35.0, [10, 34]), (34.0, [10]), (50.0, [10, 34, 30, 36]), (None, [10, 34, 30, 36])]
)
def test_flyingthings3d_cuts_what_is_far_in_either_frame(tmp_path, near, depths):
    disparity = 1050 / np.array([[10, 34, 30, 36.0]])
    disparity2 = 1050 / np.array([[9, 33, 40, 30.0]])
    flyingthings3d_scene(tmp_path / "raw" / "train", disparity=disparity, change=disparity2 - disparity)
    prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", near=near)
    assert [-z for _, _, z in cloud(tmp_path, "out/train/0000000/pc1.npy")] == pytest.approx(depths)


@pytest.mark.parametrize("near", [35.0, None])
def test_flyingthings3d_pixels_at_infinity_are_far(tmp_path, near):
    flyingthings3d_scene(tmp_path / "raw" / "train", disparity=np.array([[105.0, 0.0, 105.0, 0.1]]))
    prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", near=near)
    assert len(cloud(tmp_path, "out/train/0000000/pc1.npy")) == 2


@pytest.mark.parametrize("damaged", ["disparity", "change", "flow"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("near", [35.0, None])
def test_flyingthings3d_damaged_pixels_are_errors_or_dropped_on_request(tmp_path, damaged, value, near):
    values = np.full((1, 4, 2) if damaged == "flow" else (1, 4), 105.0)
    values[0, 2] = values[0, 3] = value
    occluded = np.array([[0, 0, 0, 1]])  # what is not seen may be damaged
    flyingthings3d_scene(tmp_path / "raw" / "train", **{damaged: values}, flow_occluded=occluded)
    with pytest.raises(DataError, match="1 of 3 visible points hold NaN or infinity, the first is point 2"):
        prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", near=near)
    summary = prepare_flyingthings3d(tmp_path / "raw", tmp_path / "kept", near=near, drop_nonfinite=True)
    assert summary == PrepareSummary(1, 0, 2, ("1 points with NaN or infinity were left out",))
    assert np.isfinite(cloud(tmp_path, "kept/train/0000000/pc2.npy")).all()


def test_flyingthings3d_scene_without_near_points_is_refused(tmp_path):
    flyingthings3d_scene(tmp_path / "raw" / "train")
    with pytest.raises(DataError, match=r"0000000\.flo: no visible point nearer than 3 m"):
        prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", near=3)


def test_flyingthings3d_splits_limit_and_record(tmp_path):
    for split in ("train", "val"):
        for name in ("0000004", "0000001", "0000009"):
            flyingthings3d_scene(tmp_path / "raw" / split, name)
    (tmp_path / "raw" / "train" / "flow" / "left" / "into_future" / "0000001.flo").unlink()  # ends its sequence
    summary = prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", limit=1)
    assert sorted(p.name for p in (tmp_path / "out" / "train").iterdir()) == ["0000004"]
    assert sorted(p.name for p in (tmp_path / "out" / "val").iterdir()) == ["0000001"]
    assert summary.scenes == 2
    again = prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")
    assert (again.scenes, again.skipped, again.points) == (5, 2, 20)
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record == {
        "kind": "flyingthings3d",
        "frame": "x right, y up, z negative forward",
        "source": str(tmp_path / "raw"),
        "near_m": 35.0,
        "drop_nonfinite": False,
        "scenes": 5,
        "points": 20,
    }


def test_flyingthings3d_missing_map_is_named(tmp_path):
    flyingthings3d_scene(tmp_path / "raw" / "val")
    (tmp_path / "raw" / "val" / "disparity_change" / "left" / "into_future" / "0000000.pfm").unlink()
    with pytest.raises(DataError, match=r"disparity_change/left/into_future/0000000\.pfm: no such file"):
        prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"near": 0}, {"near": float("nan")}, {"near": 2e4}, {"limit": 0}, {"processes": 0}]
)
def test_impossible_options_are_usage_errors(tmp_path, options):
    flyingthings3d_scene(tmp_path / "raw" / "val")
    with pytest.raises(UsageError, match=next(iter(options))):
        prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# --- sources and outputs -------------------------------------------------------------------------


@pytest.mark.parametrize("prepare_any", [prepare_kitti, prepare_flyingthings3d])
def test_missing_and_empty_sources_are_refused_before_anything_is_written(tmp_path, prepare_any):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("missing", "empty", "file"):
        with pytest.raises(DataError, match=name):
            prepare_any(tmp_path / name, tmp_path / "out")
    for inner in ("training/disp_occ_0", "train/flow/left/into_future"):
        (tmp_path / "hollow" / inner).mkdir(parents=True)
    with pytest.raises(DataError, match=r"no scenes found; N+"):
        prepare_any(tmp_path / "hollow", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["2_10.png", "0000002_10.png", "000002_11.png", "x\x1b[31m.png", "٠٠٠٠٠٢_10.png"])
def test_names_that_are_not_kittis_are_refused_with_the_pattern(tmp_path, name):
    source = kitti_tree(tmp_path / "raw")
    (source / "training" / "disp_occ_0" / ".hidden.png").touch()
    (source / "training" / "disp_occ_0" / "notes.txt").touch()
    prepare_kitti(source, tmp_path / "out")
    (source / "training" / "disp_occ_0" / name).touch()
    with pytest.raises(DataError, match=r"not a scene name; NNNNNN_10\.png expected") as caught:
        prepare_kitti(source, tmp_path / "out")
    assert str(caught.value).isprintable()


def test_output_inside_the_source_is_refused(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    (tmp_path / "link").symlink_to(source)
    before = tree(source)
    for out in (source, source / "out", source / "training" / "x", tmp_path / "link" / "out"):
        with pytest.raises(UsageError, match="inside the source"):
            prepare_kitti(source, out)
    assert tree(source) == before
    (tmp_path / "out").symlink_to(tmp_path / "out")  # a loop
    with pytest.raises(DiskError):
        prepare_kitti(source, tmp_path / "out")


def test_output_that_is_a_file_is_a_disk_error(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DiskError, match="out"):
        prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_output_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "out" / "000000").mkdir(parents=True)
    (tmp_path / "out" / "000000" / "pc1.npy").write_text("mine")
    with pytest.raises(UsageError, match="not empty, and not written by bpfn prepare"):
        prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"000000": None, "000000/pc1.npy": b"mine"}


def test_output_of_other_settings_is_left_alone(tmp_path):
    flyingthings3d_scene(tmp_path / "raw" / "train")
    prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(UsageError, match=r"prepared with other settings \(near_m 20, not 35\.0\)"):
        prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out", near=20)
    with pytest.raises(UsageError, match=r"prepared with other settings \(kind kitti, not"):
        prepare_kitti(kitti_tree(tmp_path / "kitti"), tmp_path / "out")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100000, "\udcff"])
def test_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prepared.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises((DataError, UsageError)) as caught:
        prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert str(caught.value).isprintable()
    assert "choose another --out" in str(caught.value)


def test_output_that_another_process_writes_is_busy(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out"), pytest.raises(BusyError):
        prepare_kitti(source, tmp_path / "out")


# --- many scenes ---------------------------------------------------------------------------------


def test_processes_and_progress_do_not_change_the_result(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=5)
    calls: list[tuple[int, int]] = []
    prepare_kitti(source, tmp_path / "one", progress=lambda done, total: calls.append((done, total)))
    prepare_kitti(source, tmp_path / "two", processes=2)
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize("processes", [1, 2])
def test_all_bad_scenes_are_in_one_error_and_the_good_ones_kept(tmp_path, processes):
    source = kitti_tree(tmp_path / "raw", scenes=15)
    images = sorted((source / "training" / "disp_occ_1").iterdir())
    whole = images[0].read_bytes()
    for image in images[2:14]:
        image.write_bytes(whole[:-20])
    with pytest.raises(DataError) as caught:
        prepare_kitti(source, tmp_path / "out", processes=processes)
    message = str(caught.value)
    assert message.startswith("12 of 15 scenes could not be prepared: ")
    assert message.count("damaged") == 10
    assert "disp_occ_1/000002_10.png" in message
    assert message.endswith("and 2 more")
    assert message.isprintable()
    assert not (tmp_path / "out" / "prepared.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == ["000000", "000001", "000014"]

    for image in images[2:14]:
        image.write_bytes(whole)
    summary = prepare_kitti(source, tmp_path / "out")
    assert (summary.scenes, summary.skipped, summary.points) == (15, 3, 15)


def test_a_forbidden_scene_is_a_disk_error_and_the_others_are_kept(tmp_path, monkeypatch):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    opened = os.open

    def forbid(path, *arguments, **options):
        if str(path).endswith("flow_occ/000001_10.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(arrays.os, "open", forbid)
    with pytest.raises(DiskError, match=r"1 of 3 scenes .*flow_occ/000001_10\.png: no permission"):
        prepare_kitti(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == ["000000", "000002"]


# --- interruption --------------------------------------------------------------------------------


def test_a_repeated_run_skips_everything_and_changes_nothing(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    first = prepare_kitti(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    again = prepare_kitti(source, tmp_path / "out")
    assert again == PrepareSummary(3, 3, first.points, first.notes)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not an array"])
def test_a_scene_that_is_not_whole_is_prepared_again(tmp_path, damage):
    source = kitti_tree(tmp_path / "raw", scenes=2)
    prepare_kitti(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    (tmp_path / "out" / "000001" / "pc1.npy").write_bytes(damage)
    assert prepare_kitti(source, tmp_path / "out").skipped == 1
    assert tree(tmp_path / "out") == before


def test_a_scene_whose_clouds_differ_in_length_is_prepared_again(tmp_path):
    source = kitti_tree(tmp_path / "raw")
    prepare_kitti(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    np.save(tmp_path / "out" / "000000" / "pc1.npy", np.zeros((2, 3), np.float32))
    assert prepare_kitti(source, tmp_path / "out").skipped == 0
    assert tree(tmp_path / "out") == before


def test_killed_at_any_write_a_repeated_run_gives_the_same_bytes(tmp_path):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    prepare_kitti(source, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    writes = 2 * 3 + 2
    for kill_at in range(1, writes + 1):
        out = tmp_path / f"killed{kill_at}"
        assert killed_before_rename(kill_at, source, out)
        left = tree(out)
        assert any(files.TEMPORARY_PREFIX in name for name in left)
        assert "prepared.json" not in left
        prepare_kitti(source, out)
        assert tree(out) == whole
    assert not killed_before_rename(writes + 1, source, tmp_path / "finished")


@pytest.mark.slow
def test_killed_100_times_a_repeated_run_gives_the_same_bytes(tmp_path):
    source, out = kitti_tree(tmp_path / "raw", scenes=40), tmp_path / "out"
    prepare_kitti(source, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    generator, kills = np.random.default_rng(0), 0
    while kills < 100:
        if not killed_before_rename(int(generator.integers(1, 60)), source, out):
            assert tree(out) == whole
            shutil.rmtree(out)
            continue
        kills += 1
        left = {name: content for name, content in tree(out).items() if name in whole}
        assert all(whole[name] == content for name, content in left.items()), "half-written or different"
    prepare_kitti(source, out)
    assert tree(out) == whole


def killed_before_rename(number: int, source: Path, out: Path) -> bool:
    """Prepare in a child that is killed as it renames its `number`-th file; whether it was."""
    child = os.fork()
    if child == 0:
        renames = iter(range(1, number))
        rename = Path.replace

        def rename_or_die(self, target):
            if next(renames, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        try:
            Path.replace = rename_or_die  # type: ignore[method-assign]
            prepare_kitti(source, out)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_full_disk_keeps_finished_scenes_and_a_repeated_run_completes(tmp_path, monkeypatch):
    source = kitti_tree(tmp_path / "raw", scenes=3)
    prepare_kitti(source, tmp_path / "whole")
    synced, allowed = (
        os.fsync,
        iter(range(2 * 4)),
    )  # two syncs a file: the record, one scene, half of the next

    def full(descriptor):
        if next(allowed, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(DiskError, match="no space left"):
            prepare_kitti(source, tmp_path / "out")
    left = tree(tmp_path / "out")
    assert {"000000/pc1.npy", "000000/pc2.npy", "000001/pc1.npy"} < set(left)
    assert not any(files.TEMPORARY_PREFIX in name for name in left)
    assert prepare_kitti(source, tmp_path / "out").skipped == 1
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_pc2_is_written_last(tmp_path, monkeypatch):
    order: list[str] = []
    write = scenes_module.write_points
    monkeypatch.setattr(
        scenes_module, "write_points", lambda path, points: (order.append(path.name), write(path, points))
    )
    prepare_kitti(kitti_tree(tmp_path / "raw"), tmp_path / "out")
    assert order == ["pc1.npy", "pc2.npy"]
