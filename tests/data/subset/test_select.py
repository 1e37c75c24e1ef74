# SPDX-License-Identifier: MIT
"""Which scenes are chosen."""

from __future__ import annotations

import json
import os

import pytest
from command import bpfn, refused, succeeded
from hypothesis import given
from hypothesis import strategies as st
from scene_folders import contents, write_flyingthings3d
from subset_runs import HALF, begin, chosen

from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import choose, plan_subset
from bpfn_cli.errors import DataError


def test_hash_keeps_the_smallest_sha256_of_seed_and_name(source):
    # printf '0:0000006' | sha256sum starts with 52b5..., 0:0000009 with 61a5..., 0:0000004 with 71d3...
    assert chosen(source, SubsetOptions()) == ("0000006", "0000009")
    assert chosen(source, SubsetOptions(0.3)) == ("0000004", "0000006", "0000009")
    assert chosen(source, SubsetOptions(seed=1)) == ("0000006", "0000007")


def test_hash_keeps_at_least_one_scene(source):
    assert chosen(source, SubsetOptions(0.01)) == ("0000006",)


def test_val_is_kept_whole_unless_asked(source):
    assert chosen(source, SubsetOptions(), "val") == ("0000000", "0000001")
    assert len(chosen(source, SubsetOptions(val_fraction=0.5), "val")) == 1


def test_all_scenes_of_fraction_1(source):
    assert len(chosen(source, SubsetOptions(1.0))) == 10


@given(
    count=st.integers(1, 60),
    fractions=st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)),
    seed=st.integers(-5, 2**40),
)
def test_smaller_hash_subset_lies_inside_the_larger(count, fractions, seed):
    names = tuple(f"{index:07d}" for index in range(count))
    small, large = (choose(names, fraction, SubsetOptions(fraction, seed=seed)) for fraction in sorted(fractions))
    assert set(small) <= set(large)
    assert list(large) == sorted(set(large))
    assert len(large) == max(1, round(max(fractions) * count))


def test_a_tenth_lies_inside_a_fifth_of_the_size_of_flyingthings3d():
    names = tuple(f"{index:07d}" for index in range(19640))
    fifth, tenth = (choose(names, fraction, SubsetOptions(fraction)) for fraction in (0.2, 0.1))
    assert (len(fifth), len(tenth)) == (3928, 1964)
    assert set(tenth) < set(fifth)


def test_stride_keeps_every_kth_from_the_offset(source):
    assert chosen(source, SubsetOptions(0.25, "stride")) == ("0000000", "0000004", "0000008")
    assert chosen(source, SubsetOptions(0.25, "stride", offset=3)) == ("0000003", "0000007")
    assert chosen(source, SubsetOptions(0.3, "stride", offset=2)) == ("0000002", "0000005", "0000008")


FIFTH = SubsetOptions().as_reported()


@pytest.mark.parametrize(
    ("scenes", "kept"),
    [((22_516, 2_251), (4504, 451)), ((22_520, 2_255), (4504, 451)), ((19_640, 3_824), (3928, 765))],
)
def test_fifth_has_the_size_of_the_reports_for_lists_of_their_length(scenes, kept):
    """The reports have 4,504 and 451 scenes; the third case is HPLFlowNet's list."""
    for split, count, expected in zip(("train", "val"), scenes, kept, strict=True):
        names = tuple(f"{index:07d}" for index in range(count))
        found = choose(names, FIFTH.share(split), FIFTH)
        assert len(found) == expected
        assert found == tuple(f"{index:07d}" for index in range(count) if index % 5 == 0)


def test_fifth_counts_places_in_the_sorted_list_of_each_split_not_numbers_in_names(tmp_path):
    """Numbers are missing in HPLFlowNet's lists."""
    train, val = ("3", "10", "11", "12", "20", "21", "30"), ("7", "8", "9", "40", "41", "42")
    numbers = {"train": [f"{int(name):07d}" for name in train], "val": [f"{int(name):07d}" for name in val]}
    source = write_flyingthings3d(tmp_path / "source", **numbers)
    assert chosen(source, FIFTH) == ("0000003", "0000021")
    assert chosen(source, FIFTH, "val") == ("0000007", "0000042")


def test_fifth_command_writes_both_splits_and_refuses_another_share(tmp_path):
    write_flyingthings3d(tmp_path / "source", val=[f"{index:07d}" for index in range(7)])
    words = ("subset", "--source", "source", "--out", "out", "--fifth")
    for more in (("--fraction", 0.1), ("--method", "stratified"), ("--val-fraction", 0.2)):
        refused(bpfn(*words, *more, cwd=tmp_path), 2, "fifth: sets fraction, method, offset and val_fraction")
    assert "2 train and 2 val scenes" in succeeded(bpfn(*words, cwd=tmp_path)).stdout
    manifest = json.loads((tmp_path / "out" / "subset.json").read_text())
    assert {split: list(files) for split, files in manifest["files"].items()} == {
        "train": ["0000000", "0000005"],
        "val": ["0000000", "0000005"],
    }
    assert (manifest["method"], manifest["fraction"], manifest["val_fraction"]) == ("stride", 0.2, 0.2)


def test_stride_beyond_the_last_scene_is_refused(source):
    with pytest.raises(DataError, match="offset 15 is beyond its 10"):
        plan_subset(source, SubsetOptions(0.05, "stride", offset=15))


def test_choice_depends_on_neither_listing_order_nor_locale(tmp_path, out, monkeypatch):
    source = write_flyingthings3d(tmp_path / "-source, élargie", train=["é", "z", "a b", "Ä", "中", "-f"])
    make_subset(source, out, HALF)
    listed = os.scandir
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", lambda path: sorted(listed(path), key=lambda entry: entry.name))
        make_subset(source, tmp_path / "forwards", HALF)
        patched.setattr(os, "scandir", lambda path: sorted(listed(path), key=lambda e: e.name, reverse=True))
        make_subset(source, tmp_path / "backwards", HALF)
    process = begin(source, tmp_path / "foreign", "auto", LC_ALL="C", PYTHONHASHSEED="1")
    assert process.wait(60) == 0
    for other in ("forwards", "backwards", "foreign"):
        assert contents(tmp_path / other) == contents(out)


def test_plan_counts_bytes_and_writes_nothing(source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plan = plan_subset(source, SubsetOptions())
    size = (source / "train" / "0000000" / "pc1.npy").stat().st_size
    assert (plan.before.train_scenes, plan.before.val_scenes, plan.before.bytes) == (10, 2, 24 * size)
    assert (plan.after.train_scenes, plan.after.val_scenes, plan.after.bytes) == (2, 2, 8 * size)
    assert (plan.kind, plan.source) == ("flyingthings3d", source)
    assert sorted(tmp_path.rglob("*")) == before
