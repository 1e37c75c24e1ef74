# SPDX-License-Identifier: MIT
"""The preparation of FlyingThings3D without FlyingThings3D: raw maps of rendered scenes give their geometry back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scene_folders import contents

from bpfn_cli.data.images import read_flo, read_mask_png, read_pfm
from bpfn_cli.data.prepare import prepare_flyingthings3d
from bpfn_cli.data.synthetic import SyntheticOptions, render_chosen, render_scene
from bpfn_cli.data.synthetic_raw import FLOW, FLOW_OCCLUDED, raw_maps, write_raw
from bpfn_cli.errors import UsageError
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, MAX_DEPTH_M

OPTIONS = SyntheticOptions(train=2, val=1, height=540)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    write_raw(folder, OPTIONS, processes=1)
    return folder


@pytest.mark.parametrize(("split", "index"), [("train", 0), ("train", 1), ("val", 0)])
def test_prepare_gives_the_scene_back(raw: Path, tmp_path: Path, split: str, index: int) -> None:
    prepare_flyingthings3d(raw, tmp_path / "out")
    pc1, pc2 = render_scene(0, index, split, 540)
    near = (pc1[:, 2] < MAX_DEPTH_M) & (pc2[:, 2] < MAX_DEPTH_M)
    folder = tmp_path / "out" / split / f"{index:07d}"
    for name, expected in (("pc1.npy", pc1[near]), ("pc2.npy", pc2[near])):
        found = np.load(folder / name) * FLYINGTHINGS3D_AXES
        assert abs(len(found) - len(expected)) <= 2  # at the cut rounding decides
        if len(found) == len(expected):
            # Disparity is stored in float32: 35 m to 35^2 / 1050 of a unit of 0.03 px in its last place.
            np.testing.assert_allclose(found, expected, atol=3e-4, rtol=0)
            assert np.abs(found - expected).mean() < 1e-5


def test_maps_say_what_frame_2_sees(raw: Path) -> None:
    pair = render_chosen(0, 0, "train", 540)
    hidden = read_mask_png(raw / "train" / FLOW_OCCLUDED / "0000000.png")
    expected = np.ones(540 * 960, bool)
    expected[pair.pixels[pair.visible]] = False
    np.testing.assert_array_equal(hidden.ravel(), expected)
    flow = read_flo(raw / "train" / FLOW / "0000000.flo")
    assert flow.shape == (540, 960, 2)
    rows, columns = np.divmod(np.arange(540 * 960), 960)
    u, v = columns + flow[..., 0].ravel(), rows + flow[..., 1].ravel()
    seen = ~hidden.ravel()
    assert u[seen].min() >= -1e-3
    assert u[seen].max() <= 959.001
    assert v[seen].min() >= -1e-3
    assert v[seen].max() <= 539.001
    assert (read_pfm(raw / "train" / "disparity/left/0000000.pfm") <= 0).all()


def test_a_repeated_call_writes_what_is_missing_and_the_same_bytes(tmp_path: Path) -> None:
    few = SyntheticOptions(train=2, val=0, height=540)
    write_raw(tmp_path / "a", few, processes=2)
    before = contents(tmp_path / "a")
    (tmp_path / "a" / "train" / FLOW / "0000001.flo").unlink()
    write_raw(tmp_path / "a", few, processes=1)
    assert contents(tmp_path / "a") == before


def test_refusals(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="540 high"):
        write_raw(tmp_path, SyntheticOptions(height=135), 1)
    with pytest.raises(UsageError, match="other options"):
        write_raw(raw, SyntheticOptions(train=1, val=0, seed=1, height=540), 1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        write_raw(tmp_path, OPTIONS, 1)


def test_maps_of_one_pixel_by_hand() -> None:
    pair = render_chosen(0, 0, "val", 540)
    maps = raw_maps(pair)
    seen = int(np.flatnonzero(pair.visible)[1000])
    row, column = divmod(int(pair.pixels[seen]), 960)
    x2, y2, z2 = pair.points2[seen]
    assert maps["disparity/left"][row, column] == pytest.approx(-1050 / pair.points1[seen, 2])
    change = maps["disparity_change/left/into_future"][row, column]
    assert maps["disparity/left"][row, column] + change == pytest.approx(-1050 / z2, rel=1e-6)
    assert maps[FLOW][row, column] == pytest.approx((479.5 - 1050 * x2 / z2 - column, 269.5 - 1050 * y2 / z2 - row))
