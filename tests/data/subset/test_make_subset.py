# SPDX-License-Identifier: MIT
"""What is written, when a subset is made once or again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from scene_folders import contents, write_flyingthings3d, write_random_scene
from subset_runs import COPY, HALF, chosen, edit, refused

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.subset import transfer
from bpfn_cli.data.subset.make import make_subset, verify_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import plan_subset
from bpfn_cli.errors import DataError, DiskError


@pytest.mark.parametrize("link", ["auto", "copy", "hard", "symlink"])
def test_subset_holds_the_chosen_files_and_their_hashes(source, out, link):
    options = SubsetOptions(0.5, link=link)
    summary = make_subset(source, out, options)
    files = contents(out)
    manifest = json.loads(files.pop("subset.json"))
    names = plan_subset(source, options).chosen
    assert sorted(files) == sorted(
        f"{split}/{name}/{cloud}.npy" for split in names for name in names[split] for cloud in ("pc1", "pc2")
    )
    for key, content in files.items():
        split, name, cloud = key.split("/")
        assert content == (source / key).read_bytes()
        assert manifest["files"][split][name][cloud] == {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    assert manifest["format"] == 1
    assert (manifest["kind"], manifest["source_kind"]) == ("subset", "flyingthings3d")
    assert (manifest["method"], manifest["seed"], manifest["fraction"]) == ("hash", 0, 0.5)
    assert manifest["source"] == str(source)
    assert manifest["before"] == {"train_scenes": 10, "val_scenes": 2, "bytes": summary.before.bytes}
    assert manifest["after"]["bytes"] == sum(map(len, files.values()))
    assert not summary.already_complete
    assert verify_subset(out) == summary


@pytest.mark.parametrize(("link", "linked"), [("auto", True), ("hard", True), ("copy", False), ("symlink", True)])
def test_link_says_whether_files_are_shared(source, out, link, linked):
    make_subset(source, out, SubsetOptions(1.0, link=link))
    target = out / "train" / "0000000" / "pc1.npy"
    assert target.samefile(source / "train" / "0000000" / "pc1.npy") == linked
    assert target.is_symlink() == (link == "symlink")
    assert np.array_equal(open_dataset(out, "train").load(0).pc1, open_dataset(source, "train").load(0).pc1)


def test_relative_source_may_be_symlinked(source, out, monkeypatch):
    monkeypatch.chdir(source.parent)
    make_subset(Path("source"), Path("out"), SubsetOptions(0.5, link="symlink"))
    assert len(open_dataset(out, "train").load(0).pc1) == 20


def test_hard_link_of_a_symlinked_source_shares_the_file_itself(source, out):
    path = source / "train" / "0000000" / "pc1.npy"
    path.rename(source.parent / "real.npy")
    path.symlink_to(source.parent / "real.npy")
    make_subset(source, out, SubsetOptions(1.0, link="hard"))
    target = out / "train" / "0000000" / "pc1.npy"
    assert not target.is_symlink()
    assert target.samefile(source.parent / "real.npy")


def test_auto_copies_where_hard_links_are_refused(source, out, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    make_subset(source, out, HALF)
    assert not any(path.is_file() and path.stat().st_nlink > 1 for path in out.rglob("*"))
    assert verify_subset(out)
    message = refused(DiskError, source, out.with_name("hard"), SubsetOptions(0.5, link="hard"))
    assert "use --link copy" in message


def test_synthetic_source_stays_synthetic(source, out):
    (source / "synthetic.json").write_text('{"kind": "synthetic"}')
    assert make_subset(source, out, HALF).source_kind == "synthetic"
    assert open_dataset(out, "train").kind == "synthetic"


def test_subset_of_a_subset(source, out, tmp_path):
    (source / "synthetic.json").write_text('{"kind": "synthetic"}')
    make_subset(source, out, HALF)
    summary = make_subset(out, tmp_path / "less", SubsetOptions(0.4))
    assert (summary.source_kind, summary.after.train_scenes) == ("synthetic", 2)
    assert open_dataset(tmp_path / "less", "train").names == chosen(source, SubsetOptions(0.2))


def test_source_without_val_gives_a_subset_without_val(tmp_path, out):
    write_flyingthings3d(tmp_path / "source", val=0)
    assert make_subset(tmp_path / "source", out, HALF).after.val_scenes == 0
    assert not (out / "val").exists()
    (tmp_path / "source" / "val").mkdir()
    assert verify_subset(make_subset(tmp_path / "source", tmp_path / "other", HALF).out)


def test_threads_do_not_change_the_bytes(source, out, tmp_path):
    make_subset(source, out, COPY, processes=1)
    make_subset(source, tmp_path / "many", COPY, processes=6)
    assert contents(out) == contents(tmp_path / "many")


def test_progress_counts_the_scenes(source, out):
    seen: list[tuple[int, int]] = []
    make_subset(source, out, HALF, progress=lambda *step: seen.append(step))
    assert seen == [(done, 7) for done in range(1, 8)]


@pytest.mark.parametrize("link", ["auto", "copy", "hard", "symlink"])
def test_finished_subset_is_not_made_again(source, out, monkeypatch, link):
    options = SubsetOptions(0.5, link=link)
    first = make_subset(source, out, options)
    before = contents(out)
    monkeypatch.setattr(transfer, "transfer_scene", None)
    again = make_subset(source, out, options)
    assert again.already_complete
    assert (again.after, again.similarity) == (first.after, first.similarity)
    assert contents(out) == before


def test_finished_subset_of_a_moved_source_is_complete(source, out):
    make_subset(source, out, HALF)
    moved = source.rename(source.with_name("moved"))
    assert make_subset(moved, out, HALF).already_complete


def test_lost_file_is_put_back(source, out):
    make_subset(source, out, HALF)
    before = contents(out)
    next(out.glob("train/*/pc2.npy")).unlink()
    assert not make_subset(source, out, HALF).already_complete
    assert contents(out) == before


def test_copies_with_new_times_are_compared_by_content(source, out):
    make_subset(source, out, COPY)
    before = contents(out)
    for path in out.glob("*/*/*.npy"):
        os.utime(path, (1, 1))
    assert not make_subset(source, out, COPY).already_complete
    assert contents(out) == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (SubsetOptions(0.4), "fraction 0.4, not 0.5"),
        (SubsetOptions(0.5, seed=1), "seed 1, not 0"),
        (SubsetOptions(0.5, "stride"), "method stride, not hash"),
        (SubsetOptions(0.5, link="copy"), "link copy, not auto"),
        (SubsetOptions(0.5, val_fraction=0.5), "val_fraction 0.5, not None"),
    ],
)
def test_subset_of_other_options_needs_force(source, out, options, difference):
    make_subset(source, out, HALF)
    before = contents(out)
    message = refused(DataError, source, out, options)
    assert difference in message
    assert "--force" in message
    assert contents(out) == before
    make_subset(source, out, options, force=True)
    make_subset(source, out.with_name("fresh"), options)
    assert contents(out) == contents(out.with_name("fresh"))


def test_source_that_changed_since_needs_force(source, out):
    make_subset(source, out, COPY)
    write_random_scene(source / "train" / "0000010", 10)
    assert "another source, or one that changed" in refused(DataError, source, out, COPY)
    make_subset(source, out, COPY, force=True)
    assert verify_subset(out).before.train_scenes == 11


@pytest.mark.parametrize("link", ["auto", "copy", "symlink"])
@pytest.mark.parametrize("side", ["source", "out"])
def test_edited_file_of_the_same_size_is_refused(source, out, link, side):
    options = SubsetOptions(0.5, link=link)
    make_subset(source, out, options)
    name = chosen(source, options)[0]
    before = (out / "subset.json").read_bytes()
    edit((source if side == "source" else out) / "train" / name / "pc2.npy")
    message = refused(DataError, source, out, options)
    assert name in message
    assert "--force" in message
    assert (out / "subset.json").read_bytes() == before
    make_subset(source, out, options, force=True)
    assert contents(out)[f"train/{name}/pc2.npy"] == (source / "train" / name / "pc2.npy").read_bytes()
    verify_subset(out)


def test_edited_file_of_an_unfinished_subset_is_refused(source, out):
    make_subset(source, out, COPY)
    (out / "subset.json.partial").write_text(json.dumps(plan_subset(source, COPY).task.document()))
    (out / "subset.json").unlink()
    name = chosen(source, COPY)[0]
    edit(out / "train" / name / "pc1.npy")
    assert f"{name}/pc1.npy: differs from its source" in refused(DataError, source, out, COPY)


@pytest.mark.parametrize(
    "foreign",
    ["notes.txt", "train/9999999/pc1.npy", "train/.bpfn-tmp-x/y", "train/README", "val/0000000/pc3.npy"],
)
def test_foreign_file_is_refused_then_left_or_removed(source, out, foreign):
    make_subset(source, out, HALF)
    expected = contents(out)
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("mine")
    named = str(Path(foreign).parent) if Path(foreign).name in {"pc1.npy", "y"} else foreign
    message = refused(DataError, source, out, HALF)
    assert f"{named}: not part of this subset (1 such)" in message
    assert "--force" in message
    with pytest.raises(DataError, match=f"{named} does not belong"):
        verify_subset(out)
    make_subset(source, out, HALF, force=True)
    if foreign == "notes.txt":
        assert contents(out) == {**expected, "notes.txt": b"mine"}
    else:
        assert contents(out) == expected


def test_folder_of_something_else_is_refused_and_left_alone(source, out):
    write_flyingthings3d(out, train=3)
    before = contents(out)
    assert "train: not part of this subset" in refused(DataError, source, out, HALF)
    assert contents(out) == before


@pytest.mark.parametrize("link", ["copy", "symlink"])
@pytest.mark.parametrize("place", ["train", "train/NAME", "train/NAME/pc1.npy"])
def test_force_writes_through_no_link(source, out, tmp_path, link, place):
    options = SubsetOptions(0.5, link=link)
    make_subset(source, out, options)
    name = chosen(source, options)[0]
    trap = out / place.replace("NAME", name)
    outside = tmp_path / "outside"
    trap.rename(outside)
    trap.symlink_to(outside)
    if outside.is_dir():
        (outside / "precious").write_text("precious")
    elif link == "copy":
        outside.write_text("precious")
    else:
        outside.unlink()
        outside.write_text("precious")
    before = contents(tmp_path)
    del before["out/subset.json"]
    assert "--force" in refused(DataError, source, out, options)
    make_subset(source, out, options, force=True)
    assert verify_subset(out)
    for key, content in before.items():
        if key.startswith("outside"):
            assert (tmp_path / key).read_bytes() == content


def test_damaged_manifest_needs_force(source, out):
    make_subset(source, out, HALF)
    before = contents(out)
    (out / "subset.json").write_text("{")
    assert "--force" in refused(DataError, source, out, HALF)
    make_subset(source, out, HALF, force=True)
    assert contents(out) == before


def test_manifest_of_the_same_task_with_other_scenes_is_refused(source, out):
    make_subset(source, out, HALF)
    document = json.loads((out / "subset.json").read_text())
    scenes = document["files"]["train"]
    scenes["9999999"] = scenes.pop(next(iter(scenes)))
    (out / "subset.json").write_text(json.dumps(document))
    assert "its scenes do not match" in refused(DataError, source, out, HALF)
