# SPDX-License-Identifier: MIT
"""Checking a finished subset."""

from __future__ import annotations

import json
import os

import pytest
from scene_folders import contents
from subset_runs import COPY, HALF, chosen, edit

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.subset.make import make_subset, verify_subset
from bpfn_cli.data.subset.manifest import read_manifest
from bpfn_cli.errors import DataError


def test_verify_lists_changed_missing_and_foreign_files(source, out):
    make_subset(source, out, COPY)
    first, second, third = chosen(source, COPY)[:3]
    edit(out / "train" / first / "pc1.npy")
    (out / "train" / second / "pc2.npy").unlink()
    (out / "train" / third / "pc1.npy").unlink()
    os.mkfifo(out / "train" / third / "pc1.npy")
    (out / "val" / "stray").write_text("")
    with pytest.raises(DataError) as error:
        verify_subset(out)
    assert str(error.value).startswith(
        f"{out}: train/{first}/pc1.npy changed, train/{second}/pc2.npy is missing, "
        f"train/{third}/pc1.npy does not belong, val/stray does not belong; "
    )


def test_verify_lists_ten_and_counts_the_rest(source, out):
    make_subset(source, out, COPY)
    for path in out.glob("*/*/*.npy"):
        path.unlink()
    with pytest.raises(DataError, match=r"pc2\.npy is missing and 4 more"):
        verify_subset(out)


def test_verify_sees_a_wrong_hash_in_the_manifest(source, out):
    make_subset(source, out, HALF)
    name = chosen(source, HALF)[0]
    recorded = read_manifest(out / "subset.json").files["train"][name]["pc1.npy"].sha256
    text = (out / "subset.json").read_text()
    (out / "subset.json").write_text(text.replace(recorded, "0" * 64))
    with pytest.raises(DataError, match=f"train/{name}/pc1.npy changed"):
        verify_subset(out)


def test_verify_reads_through_no_foreign_link(source, out, tmp_path):
    make_subset(source, out, COPY)
    name = chosen(source, COPY)[0]
    (out / "train" / name).rename(tmp_path / "outside")
    (out / "train" / name).symlink_to(tmp_path / "outside")
    edit(tmp_path / "outside" / "pc1.npy")
    with pytest.raises(DataError, match=f": train/{name} does not belong;"):
        verify_subset(out)


def test_verify_refuses_a_link_in_place_of_a_file(source, out, tmp_path):
    make_subset(source, out, COPY)
    path = out / "train" / chosen(source, COPY)[0] / "pc1.npy"
    path.rename(tmp_path / "outside.npy")
    path.symlink_to(tmp_path / "outside.npy")
    with pytest.raises(DataError, match=r"pc1\.npy does not belong"):
        verify_subset(out)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a\\b", "a\0b"])
def test_hostile_names_in_a_manifest_touch_nothing(source, out, tmp_path, name):
    make_subset(source, out, HALF)
    document = json.loads((out / "subset.json").read_text())
    scenes = document["files"]["train"]
    scenes[name] = scenes.pop(next(iter(scenes)))
    (out / "subset.json").write_text(json.dumps(document))
    before = contents(tmp_path)
    for attempt in (
        lambda: verify_subset(out),
        lambda: open_dataset(out, "train"),
        lambda: make_subset(source, out, HALF),
        lambda: make_subset(out, tmp_path / "less", HALF),
    ):
        with pytest.raises(DataError, match="cannot be a scene name"):
            attempt()
    assert contents(tmp_path) == before


def test_verify_of_something_else_is_refused(source):
    with pytest.raises(DataError, match=r"no subset\.json"):
        verify_subset(source)
    with pytest.raises(DataError, match=r"no subset\.json"):
        verify_subset(source / "absent")
