# SPDX-License-Identifier: MIT
"""Folders and lists of pairs, and what is said of those that are not."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cloud_files import refusal, scan

from bpfn_cli.data.clouds import listing as listing_module
from bpfn_cli.data.clouds.pairs import CloudPair
from bpfn_cli.data.clouds.search import Source, find_source
from bpfn_cli.errors import DataError, UsageError

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


def search(path: Path) -> Source:
    """As with --frame, so that datasets are not looked for."""
    return find_source(path, None, known_frame=True)


def found(path: Path, root: Path) -> list[tuple[str, ...]]:
    """The name of each pair, and its paths below `root`."""
    source = search(path)
    assert source.many
    return [(pair.name, *(str(one.relative_to(root)) for one in pair.inputs)) for pair in source.pairs]


# --- folders ----------------------------------------------------------------------------------------


def test_frames_are_paired_in_natural_order(tmp_path: Path) -> None:
    for name in ("f10.ply", "f9.ply", "f08.PLY", ".f1.ply", "f9.json", "notes.txt"):
        frame(tmp_path / name)
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
        (lambda root: None, ["found no clouds; expected either two or more cloud files of one kind (frames), or "]),
        (lambda root: frame(root / "notes.txt"), ["found no clouds"]),
        (lambda root: frame(root / "a.ply"), ["found .ply files: 1;"]),
        (lambda root: (frame(root / "a.ply"), npz_pair(root / "b.npz")), [".ply files: 1, .npz pairs: 1;"]),
        (
            lambda root: (frame(root / "a.ply"), scene(root / "b")),
            [".ply files: 1, folders with pc1.npy and pc2.npy: 1;"],
        ),
        (lambda root: (scene(root / "a"), frame(root / "b" / "pc1.npy")), ["pc2.npy: 1, other folders: 1;"]),
        (
            lambda root: (frame(root / "a.ply"), frame(root / "a.npy"), frame(root / "b.ply")),
            [".npy files: 1, .ply files: 2; expected either two or more cloud files of one kind"],
        ),
        (
            lambda root: (frame(root / "a.ply"), frame(root / "a.ply.gz"), frame(root / "b.ply")),
            ["a.ply", "would both be written to a.npy; rename one"],
        ),
        (lambda root: (root / "a.npz").write_bytes(b"no archive"), ["a.npz: not an .npz archive"]),
    ],
)
def test_folder_of_no_or_several_kinds_is_refused(
    make: Callable[[Path], object], words: list[str], tmp_path: Path
) -> None:
    make(tmp_path)
    message = refusal(tmp_path, search)
    assert all(word in message for word in words), message


# --- lists ------------------------------------------------------------------------------------------


def test_list_holds_two_clouds_or_one_npz_a_line(tmp_path: Path) -> None:
    for name in ("a.ply", "with space.bin", "s/pc1.npy", "s/pc2.npy"):
        frame(tmp_path / "in" / name)
    npz_pair(tmp_path / "p.npz")
    lines = ("# scans", "", "a.ply 'with space.bin'  # a comment", f"{tmp_path}/p.npz", "s/pc1.npy s/../s/pc2.npy")
    (tmp_path / "in" / "pairs.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    assert found(tmp_path / "in" / "pairs.txt", tmp_path) == [
        ("a", "in/a.ply", "in/with space.bin"),
        ("p", "p.npz"),
        ("s", "in/s/pc1.npy", "in/s/../s/pc2.npy"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.ply b.ply c.ply", ["line 2: 3 paths found, two clouds or one .npz expected"]),
        ("a.ply", ["a.ply: one path found; two clouds, or an .npz with pc1 and pc2, expected"]),
        ("one.npz", ["one.npz: one path found;"]),
        ("a.ply b.ply\nc.ply", ["c.ply: one path found;", "(or one frame on every line)"]),
        ("a.ply nowhere.ply", ["line 2: ", "nowhere.ply: no such file; paths are relative to the list"]),
        ("a.ply b.obj", ["line 2: ", "b.obj: unknown ending; use one of .npy, .npz, .ply, .pcd, "]),
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
    message = refusal(tmp_path / "pairs.txt", search)
    assert all(word in message for word in words), message


def test_list_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "pairs.txt", search)
    (tmp_path / "pairs.txt").write_bytes(b"\xff\xfe")
    assert "not UTF-8 text" in refusal(tmp_path / "pairs.txt", search)


# --- text, endings, and single paths ---------------------------------------------------------------------


def test_text_is_a_frame_only_where_nothing_else_is(tmp_path: Path) -> None:
    for name in ("a1.xyz", "a2.xyz"):
        np.savetxt(tmp_path / name, scan(20))
    (tmp_path / "notes.txt").write_text("two scans")
    (tmp_path / "times.txt").write_text("0.1\n0.2\n")
    assert found(tmp_path, tmp_path) == [("a1", "a1.xyz", "a2.xyz")]
    for name in ("b1.ply", "b2.ply.gz"):
        frame(tmp_path / name)
    assert found(tmp_path, tmp_path) == [("b1", "b1.ply", "b2.ply.gz")]


@pytest.mark.parametrize("ending", [".xyz", ".XYZ.gz"])
def test_only_the_beginning_of_text_is_read_to_find_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    opened = gzip.open if ending.endswith("gz") else open
    for name in ("a", "b"):
        with opened(tmp_path / f"{name}{ending}", "wb") as file:
            file.write(b"1 2 3\n" * 100_000)
    looked_at: list[int] = []
    monkeypatch.setattr(listing_module, "looks_like_cloud", lambda content: looked_at.append(len(content)) or True)
    assert found(tmp_path, tmp_path) == [("a", f"a{ending}", f"b{ending}")]
    assert looked_at == [1 << 16, 1 << 16]


def test_text_whose_name_and_compression_differ_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xyz.gz").write_bytes(b"1 2 3\n")
    with pytest.raises(DataError, match=r"a\.xyz\.gz: not a gzip file, or damaged"):
        search(tmp_path)
    (tmp_path / "a.xyz.gz").unlink()
    (tmp_path / "b.txt").write_bytes(gzip.compress(b"1 2 3\n"))
    with pytest.raises(DataError, match=r"b\.txt: is compressed with gzip; add \.gz"):
        search(tmp_path / "b.txt")


def test_list_of_one_frame_a_line_is_a_sequence(tmp_path: Path) -> None:
    for name in ("c.ply", "a.ply", "b.ply"):
        frame(tmp_path / name)
    (tmp_path / "frames.txt").write_text("c.ply\na.ply\nb.ply\n")
    assert found(tmp_path / "frames.txt", tmp_path) == [("c", "c.ply", "a.ply"), ("a", "a.ply", "b.ply")]


def test_text_of_numbers_is_a_cloud_and_no_list(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.txt", scan(20))
    source = search(tmp_path / "a.txt")
    assert (source.pairs, source.many) == ([CloudPair(tmp_path / "a.txt")], False)


def test_two_files_are_a_pair_and_a_folder_stands_alone(tmp_path: Path) -> None:
    source = find_source(tmp_path / "a.txt", tmp_path / "b.txt", known_frame=False)
    assert (source.pairs, source.many) == ([CloudPair(tmp_path / "a.txt", tmp_path / "b.txt")], False)
    with pytest.raises(UsageError, match="holds many pairs; leave out "):
        find_source(tmp_path, tmp_path / "b.txt", known_frame=True)
    assert "no such file or folder" in refusal(tmp_path / "nowhere", search)


def test_ending_of_nuscenes_tells_the_frame(tmp_path: Path) -> None:
    sweeps = [tmp_path / "a.pcd.bin", tmp_path / "b.pcd.bin.gz"]
    source = find_source(*sweeps, known_frame=False)
    assert (source.frame, source.origin, source.is_plain) == ("nuscenes", "by the ending", True)
    assert not find_source(sweeps[0], tmp_path / "b.ply", known_frame=True).is_plain


def test_frame_of_some_clouds_is_not_dropped(tmp_path: Path) -> None:
    for name in ("a.pcd.bin", "b.pcd.bin", "c.npy", "d.npy"):
        frame(tmp_path / name)
    (tmp_path / "pairs.txt").write_text("a.pcd.bin b.pcd.bin\nc.npy d.npy\n")
    for paths in ((tmp_path / "pairs.txt", None), (tmp_path / "a.pcd.bin", tmp_path / "c.npy")):
        with pytest.raises(
            UsageError, match="some clouds are in frame nuscenes and others in an unknown one; give --f"
        ):
            find_source(*paths, known_frame=False)
        assert find_source(*paths, known_frame=True).frame is None
    (tmp_path / "pairs.txt").write_text("a.pcd.bin b.pcd.bin\n")
    assert find_source(tmp_path / "pairs.txt", None, known_frame=False).frame == "nuscenes"
