# SPDX-License-Identifier: MIT
"""Folders and lists of pairs, and what is said of those that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from npy_files import refusal

from bpfn_cli.data.files import pairs
from bpfn_cli.data.files.pairs import CloudPair, PairReader, find_pairs, holds_many

CLOUD = np.arange(12, dtype=np.float32).reshape(4, 3)


def frame(path: Path) -> None:
    """An empty file will do where nothing is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def npz_pair(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, pc1=CLOUD, pc2=CLOUD + 1)


def scene(path: Path) -> None:
    for name in ("pc1.npy", "pc2.npy"):
        frame(path / name)


def found(source: Path, root: Path) -> list[tuple[str, ...]]:
    """The name of each pair, and its paths below `root`."""
    paths = [(pair.first,) if pair.second is None else (pair.first, pair.second) for pair in find_pairs(source)]
    names = [pair.name for pair in find_pairs(source)]
    return [(name, *(str(one.relative_to(root)) for one in each)) for name, each in zip(names, paths, strict=True)]


# --- folders ----------------------------------------------------------------------------------------


def test_frames_are_paired_in_natural_order(tmp_path: Path) -> None:
    for name in ("f10.ply", "f9.ply", "f08.PLY", ".f1.ply", "f9.json", "notes.txt"):
        frame(tmp_path / name)
    assert holds_many(tmp_path)
    assert found(tmp_path, tmp_path) == [("f08", "f08.PLY", "f9.ply"), ("f9", "f9.ply", "f10.ply")]


def test_npz_files_with_both_clouds_are_pairs_and_those_with_one_are_frames(tmp_path: Path) -> None:
    for name in ("b2.npz", "b10.npz"):
        npz_pair(tmp_path / "pairs" / name)
        (tmp_path / "frames").mkdir(exist_ok=True)
        np.savez(tmp_path / "frames" / name, points=CLOUD)
    assert found(tmp_path / "pairs", tmp_path / "pairs") == [("b2", "b2.npz"), ("b10", "b10.npz")]
    assert found(tmp_path / "frames", tmp_path / "frames") == [("b2", "b2.npz", "b10.npz")]


def test_scene_folders_are_pairs_and_so_is_one_alone(tmp_path: Path) -> None:
    for name in ("0000002", "0000010"):
        scene(tmp_path / name)
    frame(tmp_path / "synthetic.json")
    expected = [(name, f"{name}/pc1.npy", f"{name}/pc2.npy") for name in ("0000002", "0000010")]
    assert found(tmp_path, tmp_path) == expected
    frame(tmp_path / "0000002" / "flow.npy")  # not a frame
    assert found(tmp_path / "0000002", tmp_path) == expected[:1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, ["found no clouds; expected either two or more cloud files (frames), or .npz files"]),
        (lambda root: frame(root / "notes.txt"), ["found no clouds"]),
        (lambda root: frame(root / "a.ply"), ["found cloud files: 1;"]),
        (lambda root: (frame(root / "a.ply"), npz_pair(root / "b.npz")), ["cloud files: 1, .npz pairs: 1;"]),
        (
            lambda root: (frame(root / "a.ply"), scene(root / "b")),
            ["cloud files: 1, folders with pc1.npy and pc2.npy: 1;"],
        ),
        (lambda root: (scene(root / "a"), frame(root / "b" / "pc1.npy")), ["pc2.npy: 1, other folders: 1;"]),
        (
            lambda root: (frame(root / "a.ply"), frame(root / "a.npy"), frame(root / "b.ply")),
            ["a.npy", "a.ply would both be written to a.npy; rename one"],
        ),
        (lambda root: (root / "a.npz").write_bytes(b"no archive"), ["a.npz: not an .npz archive"]),
    ],
)
def test_folder_of_no_or_several_kinds_is_refused(
    make: Callable[[Path], object], words: list[str], tmp_path: Path
) -> None:
    make(tmp_path)
    message = refusal(tmp_path, find_pairs)
    assert all(word in message for word in words), message


# --- lists ------------------------------------------------------------------------------------------


def test_list_holds_two_clouds_or_one_npz_a_line(tmp_path: Path) -> None:
    for name in ("a.ply", "with space.bin", "s/pc1.npy", "s/pc2.npy"):
        frame(tmp_path / "in" / name)
    npz_pair(tmp_path / "p.npz")
    lines = ("# scans", "", "a.ply 'with space.bin'  # a comment", f"{tmp_path}/p.npz", "s/pc1.npy s/../s/pc2.npy")
    (tmp_path / "in" / "pairs.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    assert holds_many(tmp_path / "in" / "pairs.txt")
    assert found(tmp_path / "in" / "pairs.txt", tmp_path) == [
        ("a", "in/a.ply", "in/with space.bin"),
        ("p", "p.npz"),
        ("s", "in/s/pc1.npy", "in/s/../s/pc2.npy"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.ply b.ply c.ply", ["line 2: 3 paths found, two clouds or one .npz expected"]),
        ("a.ply", ["line 2: ", "a.ply: one path found; two clouds, or an .npz with pc1 and pc2, expected"]),
        ("one.npz", ["line 2: ", "one.npz: one path found;"]),
        ("a.ply nowhere.ply", ["line 2: ", "nowhere.ply: no such file; paths are relative to the list"]),
        ("a.ply b.obj", ["line 2: ", "b.obj: unknown ending; use one of .bin, .npy, .npz, .pcd, .ply"]),
        ("a.ply 'b.ply", ["line 2: No closing quotation"]),
        ("# nothing", ["no pairs found; one a line expected"]),
        ("a.ply b.ply\na.ply a.ply", ["a.ply would both be written to a.npy; rename one"]),
    ],
)
def test_faulty_line_is_named(line: str, words: list[str], tmp_path: Path) -> None:
    for name in ("a.ply", "b.ply", "c.ply"):
        frame(tmp_path / name)
    np.savez(tmp_path / "one.npz", points=CLOUD)
    (tmp_path / "pairs.txt").write_text(f"\n{line}\n")
    message = refusal(tmp_path / "pairs.txt", find_pairs)
    assert all(word in message for word in words), message


def test_list_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "pairs.txt", find_pairs)
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe")
    assert "not UTF-8 text" in refusal(tmp_path / "pairs.txt", find_pairs)


# --- reading ----------------------------------------------------------------------------------------


def test_reader_reads_each_frame_of_a_sequence_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.npy" for index in range(4)]
    for index, path in enumerate(paths):
        np.save(path, CLOUD + index)
    np.savez(tmp_path / "pair.npz", pc1=CLOUD, pc2=CLOUD + 1, flow=CLOUD + 2)
    seen, read = [], pairs.read_cloud
    monkeypatch.setattr(pairs, "read_cloud", lambda path: (seen.append(path.stem), read(path))[1])
    both = [(0, 1), (1, 2), (2, 3), (0, 1)]
    wanted = [CloudPair(paths[first], paths[second]) for first, second in both] + [CloudPair(tmp_path / "pair.npz")]
    answers = list(map(PairReader(), wanted))
    for (first, second), (pc1, pc2, flow) in zip(both, answers, strict=False):
        assert np.array_equal(pc1, CLOUD + first)
        assert np.array_equal(pc2, CLOUD + second)
        assert flow is None
    assert np.array_equal(answers[-1][2], CLOUD + 2)  # type: ignore[arg-type]
    assert seen == ["0", "1", "2", "3", "0", "1"]
