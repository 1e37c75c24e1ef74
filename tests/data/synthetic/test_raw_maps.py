# SPDX-License-Identifier: MIT
"""The preparation of FlyingThings3D without FlyingThings3D: raw maps of rendered scenes give their geometry back."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from raw_downloads import prepare_flyingthings3d, prepare_occluded_flyingthings3d
from scene_folders import contents

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.datasets.occluded import BAD_SCENES
from bpfn_cli.data.files.images import parse_flo, parse_mask_png, parse_pfm
from bpfn_cli.data.prepare.flyingthings3d import occluded_name
from bpfn_cli.data.synthetic.raw_maps import FLOW, FLOW_OCCLUDED, next_disparity, raw_maps, write_raw
from bpfn_cli.data.synthetic.raycast import RenderedPair, Stage, pinhole
from bpfn_cli.data.synthetic.render import SyntheticOptions, render_stage
from bpfn_cli.errors import DataError, UsageError
from bpfn_cli.files import read_file
from bpfn_cli.parallel import Shard
from bpfn_cli.structures import FLYINGTHINGS3D_AXES, MAX_DEPTH_M

Rendered = dict[str, tuple[Stage, RenderedPair]]
OPTIONS = SyntheticOptions(train=1, val=1, height=540)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    write_raw(folder, OPTIONS, processes=1)
    return folder


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return {split: render_stage(0, 0, split, 540) for split in ("train", "val")}


@pytest.fixture(scope="module")
def occluded(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("occluded")
    summary = prepare_occluded_flyingthings3d(raw, folder)
    assert (summary.scenes, summary.points) == (2, 2 * 8192)
    return folder


def test_prepare_gives_the_scene_back(raw: Path, rendered: Rendered, tmp_path: Path) -> None:
    prepare_flyingthings3d(raw, tmp_path / "out", limit=1)
    split, pair = "train", rendered["train"][1]
    pc1, pc2 = pair.points1[pair.visible].astype(np.float32), pair.points2[pair.visible].astype(np.float32)
    near = (pc1[:, 2] < MAX_DEPTH_M) & (pc2[:, 2] < MAX_DEPTH_M)
    folder = tmp_path / "out" / split / "0000000"
    for name, expected in (("pc1.npy", pc1[near]), ("pc2.npy", pc2[near])):
        found = np.load(folder / name) * FLYINGTHINGS3D_AXES
        assert abs(len(found) - len(expected)) <= 2  # at the cut rounding decides
        if len(found) == len(expected):
            # Disparity is stored in float32: 35 m to 35^2 / 1050 of a unit of 0.03 px in its last place.
            np.testing.assert_allclose(found, expected, atol=3e-4, rtol=0)
            assert np.abs(found - expected).mean() < 1e-5


def test_maps_say_what_frame_2_sees(raw: Path, rendered: Rendered) -> None:
    _, pair = rendered["train"]
    hidden = parse_mask_png(read_file(raw / "train" / FLOW_OCCLUDED / "0000000.png"), "map")
    expected = np.ones(540 * 960, bool)
    expected[pair.pixels[pair.visible]] = False
    np.testing.assert_array_equal(hidden.ravel(), expected)
    flow = parse_flo(read_file(raw / "train" / FLOW / "0000000.flo"), "map")
    assert flow.shape == (540, 960, 2)
    rows, columns = np.divmod(np.arange(540 * 960), 960)
    u, v = columns + flow[..., 0].ravel(), rows + flow[..., 1].ravel()
    seen = ~hidden.ravel()
    assert u[seen].min() >= -1e-3
    assert u[seen].max() <= 959.001
    assert v[seen].min() >= -1e-3
    assert v[seen].max() <= 539.001
    assert (parse_pfm(read_file(raw / "train" / "disparity/left/0000000.pfm"), "map") <= 0).all()


def test_a_repeated_call_writes_what_is_missing_and_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(raw, tmp_path / "raw")
    (folder / "train" / FLOW / "0000000.flo").unlink()
    write_raw(folder, OPTIONS, processes=1)
    assert contents(folder) == contents(raw)


def test_refusals(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="540 rows"):
        write_raw(tmp_path, SyntheticOptions(height=135), 1)
    with pytest.raises(UsageError, match="other options"):
        write_raw(raw, SyntheticOptions(train=1, val=0, seed=1, height=540), 1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        write_raw(tmp_path, OPTIONS, 1)


def test_maps_of_one_pixel_by_hand(rendered: Rendered) -> None:
    _, pair = rendered["val"]
    maps = raw_maps(pair)
    seen = int(np.flatnonzero(pair.visible)[1000])
    row, column = divmod(int(pair.pixels[seen]), 960)
    x2, y2, z2 = pair.points2[seen]
    assert maps["disparity/left"][row, column] == pytest.approx(-1050 / pair.points1[seen, 2])
    change = maps["disparity_change/left/into_future"][row, column]
    assert maps["disparity/left"][row, column] + change == pytest.approx(-1050 / z2, rel=1e-6)
    assert maps[FLOW][row, column] == pytest.approx((479.5 - 1050 * x2 / z2 - column, 269.5 - 1050 * y2 / z2 - row))


@pytest.mark.parametrize(
    ("split", "name"), [("train", "TRAIN_A_0000_left_0000-0"), ("test", "TEST_A_0000_left_0000-0")]
)
def test_prepare_with_occlusion_gives_the_scene_back(occluded: Path, rendered: Rendered, split: str, name: str) -> None:
    dataset = open_dataset(occluded, split)
    assert dataset.names == (name,)
    scene = dataset.load(0)
    stage, pair = rendered["train" if split == "train" else "val"]
    # Every point of the first cloud is a rendered one, by its pixel; so are its flow and whether it is visible.
    camera = pinhole(540)
    columns = np.rint(camera.cx - camera.focal * scene.pc1[:, 0] / scene.pc1[:, 2]).astype(int)
    rows = np.rint(camera.cy - camera.focal * scene.pc1[:, 1] / scene.pc1[:, 2]).astype(int)
    found = np.searchsorted(pair.pixels, rows * camera.width + columns)
    np.testing.assert_allclose(scene.pc1, pair.points1[found], atol=3e-4, rtol=0)
    assert scene.valid is not None
    np.testing.assert_array_equal(scene.valid, pair.visible[found])
    assert 0.5 < scene.valid.mean() < 1
    flow = pair.points2[found] - pair.points1[found]
    np.testing.assert_allclose(scene.flow[scene.valid], flow[scene.valid], atol=1e-3, rtol=0)
    assert np.abs(scene.flow - flow).mean() < 1e-3  # hidden points far outside the second image are less exact
    # The second cloud is what frame 2 sees: its points lie on the depths rendered there.
    disparity = next_disparity(stage)
    columns = np.rint(camera.cx - camera.focal * scene.pc2[:, 0] / scene.pc2[:, 2]).astype(int)
    rows = np.rint(camera.cy - camera.focal * scene.pc2[:, 1] / scene.pc2[:, 2]).astype(int)
    np.testing.assert_allclose(scene.pc2[:, 2], -camera.focal / disparity[rows, columns], atol=3e-4, rtol=0)


def test_preparing_with_occlusion_again_changes_nothing(raw: Path, occluded: Path, tmp_path: Path) -> None:
    before = contents(occluded)
    assert prepare_occluded_flyingthings3d(raw, occluded).skipped == 2
    assert contents(occluded) == before
    for index in (1, 2):
        prepare_occluded_flyingthings3d(raw, tmp_path / "b", shard=Shard(index, 2))
    npz = {name: content for name, content in contents(tmp_path / "b").items() if name.endswith(".npz")}
    assert npz == {name: content for name, content in before.items() if name.endswith(".npz")} != {}


def test_damaged_pixels_are_left_out_and_counted(raw: Path, tmp_path: Path) -> None:
    source = shutil.copytree(raw, tmp_path / "raw")
    shutil.rmtree(source / "val")
    path = source / "train" / "disparity/left/0000000.pfm"
    content = bytearray(path.read_bytes())
    content[-4000:] = np.full(1000, np.nan, "<f4").tobytes()
    path.write_bytes(content)
    summary = prepare_occluded_flyingthings3d(source, tmp_path / "out")
    assert summary.notes == ("1000 points with NaN or infinity were left out",)


def test_no_frame_is_named_as_a_known_bad_one() -> None:
    names = {occluded_name(split, f"{number:07d}") for split in ("train", "val") for number in range(22_000)}
    assert len(names) == 44_000
    assert not names & BAD_SCENES


def test_a_frame_without_a_next_one_is_named(raw: Path, tmp_path: Path) -> None:
    source = shutil.copytree(raw, tmp_path / "raw")
    shutil.rmtree(source / "val")
    (source / "train" / "disparity/left/0000001.pfm").unlink()
    with pytest.raises(DataError, match=r"1 of 1 scenes.*0000001\.pfm: no such file"):
        prepare_occluded_flyingthings3d(source, tmp_path / "out")
