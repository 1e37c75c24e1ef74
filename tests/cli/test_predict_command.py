# SPDX-License-Identifier: MIT
"""`bpfn predict` on clouds as people have them: a row for each row, and a word for whatever may make it wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Result, bpfn, launched, refused, succeeded
from scene_folders import write_scene
from tiny_world import LEAST, tiny_network

from bpfn_cli.frames import axes_of
from bpfn_cli.models import save_checkpoint
from bpfn_cli.models.predict import predict_flow
from bpfn_cli.prediction import checks

POINTS = LEAST + 20
WEIGHTS = ("--checkpoint", "tiny.safetensors")
SHIFT = np.float32([0.2, -0.1, 0.3])


def street(seed: int = 0, points: int = POINTS) -> np.ndarray:
    """x left, y up, z forward."""
    return np.random.default_rng(seed).uniform((-15, -1, 2), (15, 3, 30), (points, 3)).astype(np.float32)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_network())
    np.save(tmp_path / "a.npy", street())
    np.save(tmp_path / "b.npy", street() + SHIFT)
    return tmp_path


def run(work: Path, *words: object, **options: Any) -> Result:
    return succeeded(bpfn("predict", *words, *WEIGHTS, "--force", cwd=work, **options))


def figures(work: Path, *words: object) -> dict[str, Any]:
    return json.loads(run(work, *words, "--json").stdout)


def expected(first: np.ndarray, second: np.ndarray, **options: Any) -> np.ndarray:
    return predict_flow(tiny_network(), first, second, points=LEAST, **options)


def notes(result: Result) -> list[str]:
    return [line.removeprefix("note: ") for line in result.stderr.splitlines() if line.startswith("note: ")]


# --- rows without a point ---------------------------------------------------------------------------


def damaged(work: Path) -> np.ndarray:
    """Writes c.npy: a.npy between rows without a point."""
    rows = np.insert(street(), [0, 5, 5, POINTS], 0, axis=0)
    rows[6] = np.nan
    rows[-1, 1] = np.inf
    np.save(work / "c.npy", rows)
    return np.isfinite(rows).all(axis=1) & rows.any(axis=1)


@pytest.mark.parametrize(("invalid", "word"), [("zero", "zero"), ("nan", "NaN")])
def test_rows_without_a_point_are_left_out_and_said(work: Path, invalid: str, word: str) -> None:
    valid = damaged(work)
    said = notes(run(work, "c.npy", "b.npy", "--invalid", invalid))
    why = f"4 of {POINTS + 4:,} rows of PC1 are left out (2 NaN or infinite, 2 at (0, 0, 0)); their flow is {word}"
    assert why in said
    flow = np.load(work / "flow.npy")
    assert np.array_equal(flow[valid], expected(street(), street() + SHIFT))
    assert (np.isnan(flow[~valid]) if invalid == "nan" else flow[~valid] == 0).all()
    said = notes(run(work, "b.npy", "c.npy"))
    assert "4 rows of PC2 are left out (2 NaN or infinite, 2 at (0, 0, 0))" in said
    found = figures(work, "c.npy", "b.npy")
    assert found["left_out"] == {"pc1": {"NaN or infinite": 2, "at (0, 0, 0)": 2}, "pc2": {}}
    assert found["points"] == POINTS + 4
    assert found["mean_flow_m"] == pytest.approx(np.linalg.norm(flow[valid], axis=1).mean())


def test_left_out_rows_count_in_no_metric(work: Path) -> None:
    valid = damaged(work)
    rows = np.load(work / "c.npy")
    truth = np.full_like(rows, 9)
    truth[valid] = SHIFT
    np.savez(work / "pair.npz", pos1=rows, pos2=street() + SHIFT, gt=truth)
    found = figures(work, "pair.npz", "--frame", "internal")
    errors = np.linalg.norm(expected(street(), street() + SHIFT) - SHIFT, axis=1)
    assert found["metrics"]["epe3d"] == pytest.approx(errors.mean(), rel=1e-5)
    assert found["measured"] == POINTS
    length = np.linalg.norm(SHIFT)
    assert found["true_flow_m"] == pytest.approx(length, rel=1e-5)
    said = run(work, "pair.npz", "--frame", "internal").stdout
    assert f"over {POINTS:,} points: EPE3D" in said and f"(of zero flow: {length:.4f} m)" in said


def test_errors_of_dynamic_and_static_points_are_printed(work: Path) -> None:
    truth = np.tile(SHIFT, (POINTS, 1))
    truth[:10] += (0, 0, 1)
    np.savez(work / "pair.npz", pc1=street(), pc2=street() + SHIFT, flow=truth, dynamic=np.arange(POINTS) < 10)
    said = run(work, "pair.npz", "--frame", "internal").stdout.splitlines()
    found = figures(work, "pair.npz", "--frame", "internal")["by_motion"]
    errors = np.linalg.norm(expected(street(), street() + SHIFT) - truth, axis=1)
    lengths = np.linalg.norm(truth, axis=1)
    for name, rows, count in (("dynamic", slice(10), 10), ("static", slice(10, None), POINTS - 10)):
        assert found[name]["points"] == count
        assert found[name]["epe3d"] == pytest.approx(errors[rows].mean(), rel=1e-5)
        zero = f"(of zero flow: {lengths[rows].mean():.4f} m)"
        assert f"{name}: EPE3D {errors[rows].mean():.4f} m {zero}, over {count:,} points" in said


def test_many_pairs_are_summed_by_motion(work: Path) -> None:
    (work / "two").mkdir()
    for name, moving in (("a", 10), ("b", 0)):
        mask = np.arange(POINTS) < moving
        truth = np.zeros((POINTS, 3)) + mask[:, None] * (0, 0, 2.0)
        np.savez(work / "two" / f"{name}.npz", pc1=street(), pc2=street() + SHIFT, flow=truth, dynamic=mask)
    said = run(work, "two", "--frame", "internal").stdout.splitlines()
    (dynamic,) = (line for line in said if line.startswith("dynamic"))
    assert dynamic.endswith("(of zero flow: 2.0000 m), over 10 points")
    assert any(line.startswith("static") and line.endswith(f"over {2 * POINTS - 10:,} points") for line in said)


@pytest.mark.slow
def test_installed_command_reads_a_sweep_of_nuscenes(work: Path) -> None:
    """x right, y forward, z up; five columns; a quarter of the rays without a return."""
    axes, chance = axes_of("nuscenes"), np.random.default_rng(5)
    for name, cloud in (("a", street()), ("b", street() + SHIFT)):
        rows = np.zeros((4 * POINTS // 3, 5), np.float32)
        kept = np.sort(chance.permutation(len(rows))[:POINTS])
        rows[kept, :3] = cloud @ axes
        rows[:, 3] = np.floor(chance.random(len(rows)) * 256)
        rows[:, 4] = np.arange(len(rows)) % 32
        rows[np.setdiff1d(np.arange(len(rows)), kept), 3] = 0
        (work / f"{name}.pcd.bin").write_bytes(rows.tobytes())
        if name == "a":
            where = kept
    done = launched("predict", "a.pcd.bin", "b.pcd.bin", *WEIGHTS, cwd=work)
    assert done.returncode == 0, done.stderr
    assert f"a.pcd.bin: {4 * POINTS // 3:,} points (5 columns of float32, as nuScenes has them)" in done.stderr
    assert "frame: nuscenes (x right, y forward, z up), by the ending" in done.stderr
    flow = np.load(work / "flow.npy")
    assert flow.shape == (4 * POINTS // 3, 3)
    close = expected(street() @ axes, (street() + SHIFT) @ axes, frame="nuscenes")
    assert np.abs(flow[where] - close).max() <= 1e-5 * np.abs(close).max()


# --- formats through the command --------------------------------------------------------------------


def test_columns_of_a_bin_file_are_found_or_given(work: Path) -> None:
    axes = axes_of("lidar")
    chance = np.random.default_rng(1)
    for name, cloud in (("a", street()), ("b", street() + SHIFT)):
        rows = np.c_[cloud @ axes, chance.random(POINTS)].astype(np.float32)
        (work / f"{name}.bin").write_bytes(rows.tobytes())
    said = run(work, "a.bin", "b.bin", "--frame", "lidar").stderr
    assert "a.bin: " in said and "4 columns of float32, by their statistics" in said
    found = np.load(work / "flow.npy")
    run(work, "a.bin", "b.bin", "--frame", "lidar", "--columns", 4)
    assert np.array_equal(np.load(work / "flow.npy"), found)
    cube = chance.random((POINTS, 3), np.float32)
    (work / "cube.bin").write_bytes(cube.tobytes())
    refused(bpfn("predict", "cube.bin", "b.bin", "--out", "new.npy", cwd=work), 3, "cube.bin: ", "3 (", "--columns")
    words = ("predict", "a.npy", "b.npy", "--columns", 4)
    refused(bpfn(*words, cwd=work), 2, "--columns 4: only .bin files need it")


def test_missing_library_is_one_line_with_its_installation(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "a.laz").write_bytes(b"LASF")
    monkeypatch.setitem(sys.modules, "laspy", None)
    hint = 'a.laz: reading LAS and LAZ needs laspy: pip install -c constraints.txt -e ".[io]"'
    refused(bpfn("predict", "a.laz", "b.laz", cwd=work), 2, hint)


def test_pc0_and_pc1_are_first_and_second(work: Path) -> None:
    np.savez(work / "pair.npz", pc1=street() + SHIFT, pc0=street(), flow=np.tile(SHIFT, (POINTS, 1)))
    result = run(work, "pair.npz")
    assert "pair.npz: pc0: beside pc0, pc1 is the second cloud" in notes(result)
    assert np.array_equal(np.load(work / "flow.npy"), expected(street(), street() + SHIFT))


# --- frames -----------------------------------------------------------------------------------------


def test_frame_is_printed_and_a_default_says_so(work: Path) -> None:
    assert "frame: internal (x left, y up, z forward), the default; give --frame" in run(work, "a.npy", "b.npy").stderr
    said = run(work, "a.npy", "b.npy", "--frame", "camera").stderr
    assert "frame: camera (x right, y down, z forward)\n" in said
    assert figures(work, "a.npy", "b.npy", "--axes", "right,up,backward")["frame"] == "right,up,backward"
    words = ("predict", "a.npy", "b.npy", *WEIGHTS)
    refused(bpfn(*words, "--axes", "x,up,z", cwd=work), 2, "axes x,up,z: x is not a direction")
    refused(bpfn(*words, "--axes", "right,up,backward", "--frame", "lidar", cwd=work), 2, "--frame and --axes")


def test_axes_of_a_cloud_that_lies_flat_are_noted(work: Path) -> None:
    axes = axes_of("lidar")
    for name in ("a", "b"):
        np.save(work / f"{name}.npy", np.load(work / f"{name}.npy") @ axes)
    note = "a.npy is flattest along z, but y is vertical in this frame; perhaps --frame lidar or --frame nuscenes"
    assert note in notes(run(work, "a.npy", "b.npy"))
    assert not any("flattest" in line for line in notes(run(work, "a.npy", "b.npy", "--frame", "lidar")))


def test_map_coordinates_need_an_origin(work: Path) -> None:
    far = np.array([512345.0, 5412345.0, 123.0])
    for name, cloud in (("a", street()), ("b", street() + SHIFT)):
        np.save(work / f"{name}.npy", cloud.astype(np.float64) + far)
    words = ("predict", "a.npy", "b.npy", *WEIGHTS)
    refused(
        bpfn(*words, cwd=work), 3, f"a.npy: {POINTS:,} of {POINTS:,} rows are beyond 10000 m", "use --center for map"
    )
    found = figures(work, "a.npy", "b.npy", "--center")
    origin = np.array(found["origin"])
    assert np.array_equal(origin, np.rint(np.median(np.load(work / "a.npy"), axis=0)))
    centered = [(np.load(work / f"{name}.npy") - origin).astype(np.float32) for name in "ab"]
    assert np.array_equal(np.load(work / "flow.npy"), expected(*centered))
    np.save(work / "a.npy", np.load(work / "a.npy").astype(np.float32))
    coarse = "a.npy: coordinates in float32 have steps of 0.5 m there; save them as float64"
    assert coarse in notes(run(work, "a.npy", "b.npy", "--center"))


def test_ground_is_left_out(work: Path) -> None:
    axes, rows = axes_of("lidar"), np.arange(2 * POINTS) % 2 == 0
    road = np.random.default_rng(3).uniform((-15, -1.75, 2), (15, -1.65, 30), (POINTS, 3)).astype(np.float32)
    for name, cloud in (("a", street()), ("b", street() + SHIFT)):
        both = np.empty((2 * POINTS, 3), np.float32)
        both[rows], both[~rows] = cloud + np.float32([0, 0.5, 0]), road
        np.save(work / f"{name}.npy", both @ axes)
    result = run(work, "a.npy", "b.npy", "--frame", "lidar", "--remove-ground", "--invalid", "nan")
    assert any("rows of PC1 are left out" in note and "on the ground" in note for note in notes(result))
    flow = np.load(work / "flow.npy")
    assert np.isnan(flow[~rows]).all()
    assert np.isfinite(flow[rows]).mean() > 0.9
    np.save(work / "a.npy", street()), np.save(work / "b.npy", street())
    assert "a.npy: no ground plane found; nothing removed" in notes(run(work, "a.npy", "b.npy", "--remove-ground"))


# --- the motion of the sensor -----------------------------------------------------------------------


def turned(degrees: float, translation: tuple[float, float, float]) -> np.ndarray:
    pose, angle = np.eye(4), np.deg2rad(degrees)
    pose[0, 0] = pose[2, 2] = np.cos(angle)
    pose[0, 2], pose[2, 0] = np.sin(angle), -np.sin(angle)
    pose[:3, 3] = translation
    return pose


def test_pose_is_taken_out_of_the_flow(work: Path) -> None:
    pose = turned(3, (0.1, 0, -0.8))
    np.savetxt(work / "T.txt", pose)
    result = run(work, "a.npy", "b.npy", "--pose", "T.txt")
    flow, residual = np.load(work / "flow.npy"), np.load(work / "flow.residual.npy")
    static = street() @ pose[:3, :3].T + pose[:3, 3] - street()
    assert np.allclose(flow - residual, static, atol=1e-5)
    assert "without the motion of the sensor" in result.stdout
    assert "written: flow.npy, flow.residual.npy" in result.stderr
    assert "next: " not in result.stderr
    assert "(with the motion of the sensor)" in run(work, "a.npy", "b.npy").stdout


def test_distances_take_one_search(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched, knn = [], checks.knn
    monkeypatch.setattr(checks, "knn", lambda *args: (searched.append(args), knn(*args))[1])
    np.savetxt(work / "T.txt", turned(3, (0.1, 0, -0.8)))
    run(work, "a.npy", "b.npy", "--pose", "T.txt")
    assert len(searched) == 1


def test_inverse_pose_is_noted(work: Path) -> None:
    pose = turned(3, (0.1, 0, -0.8))
    np.save(work / "b.npy", (street() @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32))
    np.savetxt(work / "T.txt", pose[:3])
    assert not any("inverse" in note for note in notes(run(work, "a.npy", "b.npy", "--pose", "T.txt")))
    np.savetxt(work / "T.txt", np.linalg.inv(pose))
    assert any(
        "the inverse of the pose brings" in note for note in notes(run(work, "a.npy", "b.npy", "--pose", "T.txt"))
    )


def test_estimated_pose_is_that_of_the_flow_and_can_be_given(work: Path) -> None:
    """Also of clouds in coordinates of a map, where the translation is that of the map."""
    for name, cloud in (("a", street()), ("b", street() + SHIFT)):
        np.save(work / f"{name}.npy", cloud.astype(np.float64) + np.array([51234, 0, 5412]))
    run(work, "a.npy", "b.npy", "--center", "--pose", "estimate", "--out", "e.npy")
    run(work, "a.npy", "b.npy", "--center", "--pose", "e.pose.txt", "--out", "g.npy")
    pose = np.loadtxt(work / "e.pose.txt")
    assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
    residuals = [np.load(work / f"{name}.residual.npy") for name in "eg"]
    assert np.allclose(*residuals, atol=1e-4)  # though 50 km away
    lengths = [np.linalg.norm(one, axis=1).mean() for one in (residuals[0], np.load(work / "e.npy"))]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 0 0 0\n0 1 0 0\n", "numbers of shape (2, 4) found, 1 pose of 4x4 or 3x4 numbers expected"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 zero\n", "not numbers"),
        ("2 0 0 0\n0 1 0 0\n0 0 1 0\n", "the pose is not a rotation and a translation"),
        ("-1 0 0 0\n0 1 0 0\n0 0 1 0\n", "the pose is not a rotation and a translation"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1\n", "with 0 0 0 1 as last line"),
        ("1 0 0 nan\n0 1 0 0\n0 0 1 0\n", "the pose is not a rotation and a translation"),
    ],
)
def test_what_is_no_pose_is_refused_before_the_work(work: Path, text: str, words: str) -> None:
    (work / "T.txt").write_text(text)
    refused(bpfn("predict", "a.npy", "b.npy", "--pose", "T.txt", "--out", "new/x.npy", cwd=work), 3, "T.txt: ", words)
    assert not (work / "new").exists()


def test_sequence_takes_a_pose_for_each_pair(work: Path) -> None:
    (work / "scans").mkdir()
    for index in range(3):
        np.save(work / "scans" / f"{index}.npy", street() + index * SHIFT)
    poses = [turned(index, (0, 0, -index)) for index in range(2)]
    np.savetxt(work / "poses.txt", [pose[:3].reshape(-1) for pose in poses])
    run(work, "scans", "--pose", "poses.txt", "--out", "flows")
    for index, pose in enumerate(poses):
        flow, residual = (np.load(work / "flows" / f"{index}{kind}.npy") for kind in ("", ".residual"))
        cloud = street() + index * SHIFT
        assert np.allclose(flow - residual, cloud @ pose[:3, :3].T + pose[:3, 3] - cloud, atol=1e-5)
    refused(bpfn("predict", "a.npy", "b.npy", "--pose", "poses.txt", cwd=work), 3, "numbers of shape (2, 12) found")
    run(work, "scans", "--pose", "estimate", "--out", "flows")
    assert sorted(path.name for path in (work / "flows").iterdir()) == [
        *("0.npy", "0.pose.txt", "0.residual.npy", "1.npy", "1.pose.txt", "1.residual.npy")
    ]


# --- notes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: (a, b + np.float32([60, 0, 0])), "m apart; are they of one place, frame and unit?"),
        (lambda a, b: (a, a), "the clouds are the same"),
        (lambda a, b: (a * 100, b * 100), "are the units millimetres or centimetres?"),
        (lambda a, b: (a / 1000, b / 1000), "is it in kilometres or degrees, or scaled to unit size?"),
        (lambda a, b: (a * np.float32([1e-5, 1, 1e-5]), b * np.float32([1e-5, 1, 1e-5])), "are these degrees?"),
        (lambda a, b: (np.concatenate([a, a[:500]]), b), "a.npy: 20% of the points are duplicates"),
        (lambda a, b: (a, b), ""),
    ],
)
def test_implausible_clouds_are_noted(work: Path, change: Any, words: str) -> None:
    for name, cloud in zip("ab", change(street(points=2000), street(points=2000) + SHIFT), strict=True):
        np.save(work / f"{name}.npy", cloud)
    said = [note for note in notes(run(work, "a.npy", "b.npy", "--points", 4000)) if "no closer" not in note]
    assert any(words in note for note in said) if words else not said


def test_true_flow_between_rows_that_do_not_belong_together_is_noted(work: Path) -> None:
    for order, noted in ((np.random.default_rng(0).permutation(POINTS), True), (np.arange(POINTS), False)):
        write_scene(work / "kitti/000002", street(), (street() + SHIFT)[order])
        said = notes(run(work, "kitti/000002"))
        assert any("is each row of the second cloud the same point" in note for note in said) is noted


def test_distances_before_and_after_are_printed(work: Path) -> None:
    found = figures(work, "a.npy", "b.npy")["nearest_m"]
    assert found["before"] == pytest.approx(nearest(street(), street() + SHIFT), rel=1e-4)
    assert found["after"] == pytest.approx(nearest(street() + np.load(work / "flow.npy"), street() + SHIFT), rel=1e-4)
    line = (
        f"median distance to the nearest point of PC2: {found['before']:.3f} m, after the flow {found['after']:.3f} m"
    )
    assert line in run(work, "a.npy", "b.npy").stdout


def nearest(cloud: np.ndarray, other: np.ndarray) -> float:
    return float(np.median([np.linalg.norm(other - point, axis=1).min() for point in cloud]))


def test_splits_are_said_or_averaged(work: Path) -> None:
    for name, cloud in zip("ab", (street(points=3 * LEAST), street(points=3 * LEAST) + SHIFT), strict=True):
        np.save(work / f"{name}.npy", cloud)
    words = ("a.npy", "b.npy", "--points", LEAST)
    assert any(note.startswith("the cloud is split into 3 parts at random") for note in notes(run(work, *words)))
    single = np.load(work / "flow.npy")
    result = run(work, *words, "--average", 3)
    assert not any("split" in note for note in notes(result))
    assert "mean of 3 splits, from which a single one deviates by " in result.stdout
    assert not np.array_equal(np.load(work / "flow.npy"), single)
    assert figures(work, *words, "--average", 2)["spread_m"] > 0


def test_points_that_are_drawn_from_a_larger_second_cloud_are_said(work: Path) -> None:
    np.save(work / "b.npy", street(points=POINTS + 5) + SHIFT)
    said = f"{POINTS:,} of {POINTS + 5:,} points of the second cloud are used, drawn at random"
    assert any(note.startswith(said) for note in notes(run(work, "a.npy", "b.npy", "--points", POINTS)))
    assert not any("at random" in note for note in notes(run(work, "b.npy", "b.npy", "--points", POINTS + 5)))


def test_viewpoints_that_differ_are_said(work: Path) -> None:
    for name, x in (("a", 0), ("b", 1.5)):
        header = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
        header += f"VIEWPOINT {x} 0 0 1 0 0 0\nPOINTS {POINTS}\nDATA binary\n"
        (work / f"{name}.pcd").write_bytes(header.encode() + street().tobytes())
    assert any(
        "sensor viewpoints in the files differ (1.5 m apart)" in note for note in notes(run(work, "a.pcd", "b.pcd"))
    )
    assert not any("viewpoint" in note for note in notes(run(work, "a.pcd", "a.pcd")))


@pytest.mark.parametrize("words", [("a.npy", "bad.npy", "--out", "new/x.npy"), ("frames", "--out", "new/deeper")])
def test_refused_command_leaves_no_folder(work: Path, words: tuple[str, ...]) -> None:
    (work / "frames").mkdir()
    np.save(work / "bad.npy", np.zeros((5, 2)))
    for number in range(2):
        np.save(work / f"frames/{number}.npy", np.zeros((5, 2)))
    refused(bpfn("predict", *words, *WEIGHTS, cwd=work), 3, "two columns are not a point in space")
    assert not (work / "new").exists()


# --- datasets, and what comes next ------------------------------------------------------------------


def test_scene_of_a_dataset_knows_its_frame_and_flow(work: Path) -> None:
    axes = axes_of("flyingthings3d")
    for split, name in (("train", "0000000"), ("val", "0000001")):
        write_scene(work / "things" / split / name, street() @ axes, (street() + SHIFT) @ axes)
    result = run(work, "things/val/0000001")
    assert "frame: flyingthings3d (x right, y up, z backward), of FlyingThings3D scenes" in result.stderr
    assert "EPE3D" in result.stdout and "pairs" not in result.stdout
    close = expected(street() @ axes, (street() + SHIFT) @ axes, frame="flyingthings3d")
    assert np.abs(np.load(work / "flow.npy") - close).max() <= 1e-5 * np.abs(close).max()
    assert [pair["name"] for pair in figures(work, "things")["pairs"]] == ["0000001"]


def test_many_pairs_name_theirs_in_notes(work: Path) -> None:
    damaged(work)
    (work / "pairs.txt").write_text("a.npy b.npy\nc.npy b.npy\n")
    said = notes(run(work, "pairs.txt", "--frame", "internal"))
    assert any(note.startswith("c: 4 of ") for note in said)


def test_many_pairs_say_how_they_were_read_and_never_write_one_file_twice(work: Path) -> None:
    for name, cloud in (("a", street()), ("a.residual", street()), ("b", street() + SHIFT)):
        np.save(work / f"{name}.npy", np.c_[cloud, cloud])
    (work / "pairs.txt").write_text("a.npy b.npy\na.residual.npy b.npy\n")
    assert "read: the first 3 of 6 columns, in 2 pairs\n" in run(work, "pairs.txt").stderr
    words = ("predict", "pairs.txt", "--pose", "estimate", "--out", "new")
    refused(bpfn(*words, cwd=work), 2, "two results would be written to a.residual.npy")


def test_next_step_takes_out_the_motion_of_the_sensor(work: Path) -> None:
    result = succeeded(bpfn("predict", "a.npy", "b.npy", *WEIGHTS, cwd=work))
    following = result.stderr.splitlines()[-1]
    assert following == "next: bpfn predict a.npy b.npy --checkpoint tiny.safetensors --pose estimate --force"
    succeeded(bpfn(*following.split()[2:], cwd=work))
    assert (work / "flow.residual.npy").exists()


@pytest.mark.realdata
@pytest.mark.skipif("BPFN_REAL_DATA" not in os.environ, reason="BPFN_REAL_DATA is not set")
def test_real_clouds_in_other_formats_give_the_same_flow(work: Path) -> None:
    pair = np.load(Path(os.environ["BPFN_REAL_DATA"]) / "argoverse2" / "pair.npz")
    chance, clouds = np.random.default_rng(0), {}
    for name, key in (("a", "pc1"), ("b", "pc2")):
        cloud = clouds[name] = pair[key][np.sort(chance.choice(len(pair[key]), 3000, replace=False))]
        ring = np.arange(3000) % 64
        for columns, extra in {4: [chance.random(3000)], 5: [chance.integers(0, 256, 3000), ring]}.items():
            rows = np.column_stack([cloud, *extra])
            (work / f"{name}{columns}.bin").write_bytes(rows.astype("<f4").tobytes())
        (work / f"{name}8.bin").write_bytes(np.column_stack([cloud, ring]).astype(">f8").tobytes())
        np.savetxt(work / f"{name}.csv", cloud, fmt="%.9g", delimiter=",", header="x,y,z", comments="")
        np.save(work / f"{name}.npy", cloud)
    flow = expected(clouds["a"], clouds["b"], frame="lidar")
    for kind in ("4.bin", "5.bin", "8.bin", ".csv", ".npy"):
        run(work, f"a{kind}", f"b{kind}", "--frame", "lidar")
        assert np.array_equal(np.load(work / "flow.npy"), flow), kind
