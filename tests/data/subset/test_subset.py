# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene_folders import contents, write_flyingthings3d, write_random_scene, write_scene
from scipy.stats import ks_2samp

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.subset import make, similarity, transfer
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions, read_manifest
from bpfn_cli.data.subset.plan import plan_subset
from bpfn_cli.data.subset.select import choose
from bpfn_cli.data.subset.similarity import ks_distance
from bpfn_cli.data.subset.verify import verify_subset
from bpfn_cli.errors import BusyError, DataError, DiskError, UsageError
from bpfn_cli.locks import only_writer

HALF = SubsetOptions(0.5)
COPY = SubsetOptions(0.5, link="copy")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_flyingthings3d(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def chosen(source: Path, options: SubsetOptions, split: str = "train") -> tuple[str, ...]:
    return plan_subset(source, options).chosen[split]


def edit(path: Path) -> None:
    """Another value in the last point, the size as before."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def refused(kind: type[Exception], *arguments: object, **options: object) -> str:
    with pytest.raises(kind) as error:
        make_subset(*arguments, **options)
    message = str(error.value)
    assert message.isprintable()
    return message


# --- which scenes ---------------------------------------------------------------------------------


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


# --- what is written ------------------------------------------------------------------------------


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


# --- how representative ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scipy's, of the p-value
@given(
    first=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    second=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
)
def test_ks_distance_is_scipys(first, second):
    expected = ks_2samp(first, second, method="asymp").statistic
    assert ks_distance(np.array(first), np.array(second)) == pytest.approx(expected, abs=1e-12)


def test_ks_distance_by_hand():
    assert ks_distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == 0.5
    assert ks_distance(np.array([1.0]), np.array([1.0, 1.0])) == 0
    assert ks_distance(np.array([1.0]), np.array([2.0])) == 1


def test_similarity_compares_flow_lengths_and_depths_of_subset_and_source(tmp_path, out):
    # scene k: two points 4 m and 8 m deep, with flow 3 k and 4 k; hash, seed 0 keeps scene 6 of 0..9
    for scene in range(10):
        pc1 = np.array([[0, 0, -4], [0, 0, -8]])
        write_scene(
            tmp_path / "source" / "train" / f"{scene:07d}",
            pc1,
            np.add(pc1, [[0, 3 * scene, 0], [0, 4 * scene, 0]]),
        )
    similarity = make_subset(tmp_path / "source", out, SubsetOptions(0.1)).similarity
    # lengths of the subset: 18, 24; of the source 0, 0, 3, 4, 6, 8, 9, 12, 12, 15, 16, 18, 20, ..., 36:
    # below 18 lie 11 of 20 (and none of the subset), up to 24 lie 16 of 20 (and all of the subset)
    assert similarity.flow_length == 0.55
    assert similarity.depth == 0
    assert (similarity.source_scenes, similarity.subset_scenes) == (10, 1)


def test_similarity_of_the_whole_is_perfect(source, out):
    similarity = make_subset(source, out, SubsetOptions(1.0)).similarity
    assert (similarity.flow_length, similarity.depth) == (0, 0)


def test_similarity_samples_scenes_by_another_order_than_the_choice(source, out, monkeypatch):
    monkeypatch.setattr(similarity, "SAMPLED_SCENES", 2)
    found = make_subset(source, out, SubsetOptions()).similarity  # keeps 2 of 10
    assert found.flow_length > 0
    assert (found.source_scenes, found.subset_scenes) == (2, 2)


# --- repeating ------------------------------------------------------------------------------------


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
    assert "names other scenes" in refused(DataError, source, out, HALF)


# --- kills, neighbors -----------------------------------------------------------------------------

_MAKE = """
import sys
from pathlib import Path
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
print("ready", flush=True)
sys.stdin.readline()
make_subset(Path(sys.argv[1]), Path(sys.argv[2]), SubsetOptions(0.5, link=sys.argv[3]), processes=2)
"""


def begin(source: Path, out: Path, link: str, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _MAKE, str(source), str(out), link],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert process.stdout and process.stdin
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process


def killed_before_change(number: int, source: Path, out: Path, options: SubsetOptions, **more: bool) -> bool:
    """Whether another process that makes a subset was killed before its `number`-th change of `out`."""
    child = os.fork()
    if child == 0:
        try:
            sys.addaudithook(_killer(number, out))
            make_subset(source, out, options, processes=2, **more)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _killer(number: int, out: Path) -> Callable[[str, tuple[object, ...]], None]:
    changes = {
        "tempfile.mkstemp",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.mkdir",
        "os.remove",
        "os.rmdir",
        "os.utime",
    }
    seen = itertools.count(1)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in changes and str(out) in str(arguments) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


@pytest.mark.parametrize("link", ["copy", "hard", "symlink"])
def test_run_killed_at_any_point_completes_when_repeated_with_the_same_bytes(tmp_path, link):
    source = write_flyingthings3d(tmp_path / "source", train=2, val=1)
    options = SubsetOptions(0.5, link=link)
    make_subset(source, tmp_path / "whole", options)
    expected = contents(tmp_path / "whole")
    for number in itertools.count(1):
        out = tmp_path / f"out{number}"
        if not killed_before_change(number, source, out, options):
            break
        found = contents(out) if out.exists() else {}
        assert all(expected[key] == content for key, content in found.items() if key in expected)
        make_subset(source, out, options)
        assert contents(out) == expected
        assert verify_subset(out)
    assert number > 12


def test_replacement_killed_at_any_point_leaves_the_old_or_nothing_readable(tmp_path):
    source = write_flyingthings3d(tmp_path / "source", train=3, val=1)
    new = SubsetOptions(0.4, seed=2, link="copy")
    make_subset(source, tmp_path / "old", COPY)
    make_subset(source, tmp_path / "new", new)
    old, expected = contents(tmp_path / "old"), contents(tmp_path / "new")
    for number in itertools.count(1):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"out{number}")
        if not killed_before_change(number, source, out, new, force=True):
            break
        try:
            open_dataset(out, "train")
        except DataError:
            pass
        else:
            found = contents(out)
            found.pop("subset.json.partial", None)
            assert {key: found[key] for key in found if "tmp" not in key} in (old, expected)
        make_subset(source, out, new, force=True)
        assert contents(out) == expected
    assert number > 12


@pytest.mark.parametrize("link", ["copy", "hard"])
def test_run_killed_10_times_completes(tmp_path, out, link):
    kill_loop(tmp_path, out, link, kills=10)


@pytest.mark.slow
@pytest.mark.parametrize("link", ["copy", "hard", "symlink", "packed"])
def test_run_killed_100_times_completes(tmp_path, out, link):
    kill_loop(tmp_path, out, link, kills=100)


def kill_loop(tmp_path: Path, out: Path, link: str, kills: int) -> None:
    source = write_flyingthings3d(tmp_path / "source", train=120, val=20)
    options = SubsetOptions(0.5, packed=True) if link == "packed" else SubsetOptions(0.5, link=link)
    make_subset(source, tmp_path / "whole", options)
    expected = contents(tmp_path / "whole")
    generator = random.Random(0)
    killed = 0
    while killed < kills:
        if not killed_before_change(generator.randint(1, 80), source, out, options):
            assert contents(out) == expected
            shutil.rmtree(out)
            continue
        killed += 1
        found = contents(out) if out.exists() else {}
        assert all(expected[key] == content for key, content in found.items() if key in expected)
    make_subset(source, out, options)
    assert contents(out) == expected
    assert verify_subset(out)


def test_temporary_files_of_killed_runs_are_swept(source, out):
    make_subset(source, out, HALF)
    scene = next((out / "train").iterdir())
    for folder in (out, out / "train", scene):
        (folder / ".bpfn-tmp-abc").write_text("half")
    assert make_subset(source, out, HALF).already_complete
    assert not list(out.rglob(".bpfn-tmp-*"))


def test_record_left_by_a_kill_after_the_last_write_is_removed(source, out):
    make_subset(source, out, HALF)
    (out / "subset.json.partial").write_text(json.dumps(plan_subset(source, HALF).task.document()))
    assert make_subset(source, out, HALF).already_complete
    assert not (out / "subset.json.partial").exists()


def test_unfinished_subset_is_neither_read_nor_verified(source, out, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_subset(source, out, COPY, progress=stop)
    assert not (out / "subset.json").exists()
    assert not list(out.rglob(".bpfn-tmp-*"))
    with pytest.raises(DataError, match="unfinished"):
        open_dataset(out, "train")
    with pytest.raises(DataError, match="unfinished"):
        verify_subset(out)
    make_subset(source, out, COPY)
    assert len(open_dataset(out, "train")) == 5


def test_unfinished_subset_of_other_options_is_refused(source, out):
    out.mkdir()
    (out / "subset.json.partial").write_text(json.dumps(plan_subset(source, COPY).task.document()))
    assert "link auto, not copy" in refused(DataError, source, out, HALF)
    make_subset(source, out, HALF, force=True)
    assert verify_subset(out)


def test_second_process_on_one_target_is_busy(source, out):
    held, released = threading.Event(), threading.Event()

    def hold():
        out.mkdir()
        with only_writer(out):
            held.set()
            released.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        assert str(out) in refused(BusyError, source, out, HALF)
    finally:
        released.set()
        thread.join()
    make_subset(source, out, HALF)


def test_interrupt_ends_the_command_and_leaves_no_manifest(tmp_path, out):
    source = write_flyingthings3d(tmp_path / "source", train=400, val=0)
    process = begin(source, out, "copy")
    while process.poll() is None and not (out / "train").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert b"KeyboardInterrupt" in error
    assert not (out / "subset.json").exists()
    assert not list(out.rglob(".bpfn-tmp-*"))


# --- sources that cannot be used ------------------------------------------------------------------


@pytest.mark.parametrize("where", ["part", "train/part", ".", ".."])
def test_target_and_source_inside_each_other_are_refused(source, where):
    assert "inside each other" in refused(UsageError, source, source / where, HALF)
    assert not (source / "part").exists()


def test_linked_target_inside_the_source_is_refused(source, out):
    out.symlink_to(source)
    assert "inside each other" in refused(UsageError, source, out / "part", HALF)


def test_target_beside_the_source_of_the_usual_name_is_fine(tmp_path):
    write_flyingthings3d(tmp_path / "FlyingThings3D_subset_processed_35m")
    assert make_subset(tmp_path, tmp_path / "part", HALF).after.train_scenes == 5


def test_empty_source_is_refused(tmp_path, out):
    (tmp_path / "source" / "train").mkdir(parents=True)
    assert "no training scenes" in refused(DataError, tmp_path / "source", out, HALF)
    assert not out.exists()
    write_flyingthings3d(tmp_path / "source", train=2, val=0)
    assert "no validation scenes" in refused(DataError, tmp_path / "source", out, SubsetOptions(val_fraction=0.5))


def test_kitti_is_no_source(tmp_path, out):
    write_scene(tmp_path / "kitti_processed" / "000002", [[1, 2, 3]], [[1, 2, 3]])
    assert "no dataset" in refused(DataError, tmp_path, out, HALF)


@pytest.mark.parametrize("names", [("a", "A"), ("straße", "STRASSE"), ("é", "e\u0301")])
def test_names_that_collide_elsewhere_are_refused(tmp_path, out, names):
    write_flyingthings3d(tmp_path / "source", train=names)
    assert "the same name on some file systems" in refused(DataError, tmp_path / "source", out, HALF)


def test_loops_and_stray_entries_of_the_source_are_reported(source, out):
    (source / "train" / "loop").symlink_to(source)
    (source / "train" / "itself").symlink_to("itself")
    (source / "val" / "README").write_text("")
    summary = make_subset(source, out, SubsetOptions(1.0))
    assert summary.skipped == ("train/itself", "train/loop", "val/README")
    assert summary.after.train_scenes == 10


def test_missing_files_of_all_scenes_are_listed(source, out):
    (source / "train" / "0000001" / "pc2.npy").unlink()
    (source / "val" / "0000001" / "pc1.npy").unlink()
    message = refused(DataError, source, out, HALF)
    assert "train/0000001/pc2.npy is missing, val/0000001/pc1.npy is missing" in message
    assert not out.exists()


def test_damaged_scenes_are_all_tried_and_listed(source, out):
    (source / "train" / "0000003" / "pc1.npy").write_bytes(b"<html>")
    nan = source / "val" / "0000001" / "pc2.npy"
    np.save(nan, np.full((20, 3), np.nan, np.float32))
    write_scene(source / "train" / "0000008", np.zeros((3, 3)), np.zeros((4, 3)))
    message = refused(DataError, source, out, SubsetOptions(1.0))
    assert message.startswith("3 of 12 scenes are damaged")
    assert "0000003/pc1.npy: a web page" in message
    assert "train/0000008: pc1 has 3 points and pc2 4" in message
    assert "0000001/pc2.npy: points: 20 of 20 rows hold NaN" in message
    assert not (out / "subset.json").exists()


@pytest.mark.parametrize("change", ["grows", "shrinks", "edited", "replaced", "removed"])
def test_source_that_changes_meanwhile_is_refused(source, out, monkeypatch, change):
    path = source / "train" / chosen(source, HALF)[0] / "pc1.npy"
    read = transfer.read_file

    def read_and_change(asked):
        content = read(asked)
        if asked == path:
            if change == "grows":
                path.write_bytes(content + b"more")
            elif change == "shrinks":
                path.write_bytes(content[:-4])
            elif change == "edited":
                edit(path)
            elif change == "replaced":
                status = path.stat()
                path.rename(path.with_name("old"))
                path.write_bytes(content)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            else:
                path.unlink()
        return content

    monkeypatch.setattr(transfer, "read_file", read_and_change)
    message = refused(DataError, source, out, HALF)
    assert f"{path}: changed while the subset was made" in message
    assert not (out / "subset.json").exists()


def test_source_that_vanishes_meanwhile_is_refused(source, out, monkeypatch):
    plan = plan_subset(source, HALF)
    monkeypatch.setattr(make, "plan_subset", lambda *_, **__: plan)
    (source / "train" / plan.chosen["train"][0] / "pc1.npy").unlink()
    assert "pc1.npy: no such file" in refused(DataError, source, out, HALF)


def test_unreadable_source_is_a_disk_error(source, out, monkeypatch):
    opened = os.open
    name = chosen(source, HALF)[0]

    def refuse(path, *arguments, **options):
        if str(path).startswith(str(source)) and name in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    message = refused(DiskError, source, out, HALF)
    assert f"{name}/pc1.npy" in message
    assert not (out / "subset.json").exists()


def test_first_fault_ends_the_work(source, out, monkeypatch):
    tried = []

    def fail(*arguments):
        tried.append(arguments)
        time.sleep(0.01)
        raise DiskError("full")

    monkeypatch.setattr(transfer, "transfer_scene", fail)
    assert refused(DiskError, source, out, SubsetOptions(1.0), processes=1) == "full"
    assert len(tried) < 12


@pytest.mark.parametrize("processes", [0, -1])
def test_no_threads_is_refused(source, out, processes):
    assert "use 1 or more" in refused(UsageError, source, out, HALF, processes=processes)


# --- disks ----------------------------------------------------------------------------------------


def test_full_disk_is_seen_before_anything_is_written(source, out, monkeypatch):
    disk = SimpleNamespace(f_frsize=4096, f_bavail=10, f_files=1000, f_favail=1000)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    message = refused(DiskError, source, out, COPY)
    # 14 files of a block each, 7 scene folders and 2 split folders, and 14 * 256 bytes of subset.json
    assert f"needs {23 * 4096 + 14 * 256:,} bytes and {10 * 4096:,} are free" in message
    assert list(out.iterdir()) == []


def test_hard_links_need_no_room_for_the_files(source, out, monkeypatch):
    disk = SimpleNamespace(f_frsize=4096, f_bavail=10, f_files=1000, f_favail=1000)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert make_subset(source, out, HALF).after.train_scenes == 5


def test_files_that_are_there_need_no_room(source, out, monkeypatch):
    make_subset(source, out, COPY)
    next(out.glob("train/*/pc1.npy")).unlink()
    disk = SimpleNamespace(f_frsize=4096, f_bavail=4, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    make_subset(source, out, COPY)


def test_want_of_inodes_is_seen_before_anything_is_written(source, out, monkeypatch):
    disk = SimpleNamespace(f_frsize=4096, f_bavail=10**6, f_files=1000, f_favail=24)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert "needs 25 inodes and 24 are free" in refused(DiskError, source, out, COPY)
    assert list(out.iterdir()) == []


def test_disk_that_fills_midway_keeps_what_is_finished(source, out, monkeypatch):
    write = transfer.write_atomic
    written: list[Path] = []

    def fill(path, content):
        if len(written) == 5:
            raise DiskError(f"{path}: no space left on the disk")
        written.append(path)
        write(path, content)

    monkeypatch.setattr(transfer, "write_atomic", fill)
    assert "no space left" in refused(DiskError, source, out, COPY, processes=1)
    assert len(list(out.glob("*/*/*.npy"))) == 5
    assert not (out / "subset.json").exists()
    monkeypatch.setattr(transfer, "write_atomic", write)
    make_subset(source, out, COPY)
    assert verify_subset(out)


_TMPFS = """
mount -t tmpfs -o {options} none "$0" || exit 99
"$1" -c '
import sys
from pathlib import Path
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.errors import DiskError
try:
    make_subset(Path(sys.argv[1]), Path(sys.argv[2]), SubsetOptions(1.0))
except DiskError as error:
    print(error)
print(sorted(path.name for path in Path(sys.argv[2]).rglob("*")))
' "$2" "$0/out"
"""


@pytest.mark.parametrize(("options", "said"), [("size=200k", "bytes and"), ("size=9m,nr_inodes=20", "inodes and")])
def test_real_small_disk_says_what_is_needed(tmp_path, options, said):
    source = write_flyingthings3d(tmp_path / "source", points=1000)
    mount = tmp_path / "mount"
    mount.mkdir()
    script = _TMPFS.format(options=options)
    done = (
        subprocess.run(
            ["unshare", "-Urm", "sh", "-c", script, str(mount), sys.executable, str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if shutil.which("unshare")
        else None
    )
    if done is None or done.returncode:
        pytest.skip("needs user namespaces to mount a tmpfs")
    lines = done.stdout.splitlines()
    assert said in lines[0]
    assert "are free" in lines[0]
    assert lines[1] == "[]"


def test_target_that_is_a_file_is_a_disk_error(source, out):
    out.write_text("")
    assert "a file where a folder is needed" in refused(DiskError, source, out, HALF)


# --- verifying ------------------------------------------------------------------------------------


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
