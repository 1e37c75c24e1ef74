# SPDX-License-Identifier: MIT
"""Raw FlyingThings3D to scenes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from raw_downloads import (
    cloud,
    flyingthings3d_scene,
    prepare_flyingthings3d,
    prepare_occluded_flyingthings3d,
    tree,
)

from bpfn_cli.data.datasets import find_dataset
from bpfn_cli.data.prepare.flyingthings3d import plan_flyingthings3d
from bpfn_cli.data.prepare.runner import PrepareSummary
from bpfn_cli.errors import DataError, UsageError


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
    broken = tmp_path / "raw" / "train" / "disparity" / "left" / "0000009.pfm"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 5 scenes"):
        prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(DataError, match="unfinished"):  # though it was finished with a limit
        find_dataset(tmp_path / "out")
    broken.write_bytes(whole)
    again = prepare_flyingthings3d(tmp_path / "raw", tmp_path / "out")
    assert (again.scenes, again.skipped, again.points) == (5, 4, 20)
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


def test_occluded_scene_has_a_visible_point(tmp_path, monkeypatch):
    monkeypatch.setattr("bpfn_cli.data.prepare.flyingthings3d.OCCLUDED_POINTS", 2)
    for number in range(9):
        hidden = np.array([[0, 1, 1, 1]])
        flyingthings3d_scene(tmp_path / "raw" / "train", f"{number:07d}", disparity_occluded=hidden)
    (tmp_path / "raw" / "train" / "flow" / "left" / "into_future" / "0000008.flo").unlink()  # ends its sequence
    assert prepare_occluded_flyingthings3d(tmp_path / "raw", tmp_path / "out").scenes == 8
    masks = [np.load(path)["valid_mask1"] for path in (tmp_path / "out").glob("*.npz")]
    assert {mask.sum() for mask in masks} == {1}  # half of the draws have none


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


@pytest.mark.parametrize("folder", ["optical_flow/TRAIN/A/0000", "TRAIN/A/0000"])
def test_full_release_is_named(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"full release of FlyingThings3D, .*; give the raw FlyingThings3D subset"):
        plan_flyingthings3d(tmp_path, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folder train or val in it; give the raw"):
        plan_flyingthings3d(tmp_path / "empty", tmp_path / "out")
