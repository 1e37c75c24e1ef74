# SPDX-License-Identifier: MIT
"""The default dataset: FlyingThings3D before synthetic scenes, a dataset's own subset before the dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scene_folders import contents, write_flyingthings3d

from bpfn_cli.cli.places import data_root, default_dataset, full_dataset, subset_place
from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.synthetic import render as synthetic
from bpfn_cli.data.synthetic.driving.scenes import DrivingOptions
from bpfn_cli.errors import DataError

THINGS = "FlyingThings3D_subset_processed_35m"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root, `data`, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BPFN_DATA", raising=False)
    Path("data").mkdir()
    return Path("data")


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that synthetic scenes were asked for; they are small here."""
    made: list[Path] = []

    def write(folder: Path, options: DrivingOptions, *_: Any) -> None:
        assert options == DrivingOptions()
        write_synthetic(folder)
        made.append(folder)

    monkeypatch.setattr(synthetic, "write_synthetic", write)
    return made


def write_synthetic(folder: Path) -> Path:
    write_flyingthings3d(folder, train=4, val=1)
    (folder / "synthetic.json").write_text(json.dumps({"kind": "synthetic"}))
    return folder


def write_things(folder: Path) -> Path:
    return write_flyingthings3d(folder, train=4, val=1)


def write_subset(source: Path, out: Path | None = None) -> Path:
    out = subset_place(source) if out is None else out
    make_subset(source, out, SubsetOptions(fraction=0.5, link="copy"), processes=1)
    return out


def test_data_root_is_data_or_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BPFN_DATA", raising=False)
    assert data_root() == Path("data")
    monkeypatch.setenv("BPFN_DATA", "")
    assert data_root() == Path("data")
    monkeypatch.setenv("BPFN_DATA", "/mnt/a b")
    assert data_root() == Path("/mnt/a b")


# --- the whole dataset ------------------------------------------------------------------------------


def test_flyingthings3d_is_preferred_to_synthetic_scenes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic(root / "synthetic")
    assert full_dataset() == default_dataset() == root / "synthetic"
    assert "no FlyingThings3D in data: using the synthetic scenes in data/synthetic" in capsys.readouterr().err
    write_things(root / THINGS)
    assert full_dataset() == default_dataset() == root / THINGS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("choose", [full_dataset, default_dataset])
@pytest.mark.parametrize("has_root", [True, False])
def test_synthetic_scenes_are_made_on_first_use_and_said(
    root: Path, rendered: list[Path], capsys: pytest.CaptureFixture[str], choose: Any, has_root: bool
) -> None:
    if not has_root:
        root.rmdir()
    assert choose() == root / "synthetic"
    assert rendered == [root / "synthetic"]
    captured = capsys.readouterr()
    assert "rendering synthetic traffic scenes in data/synthetic, once" in captured.err
    assert captured.out == ""
    assert choose() == root / "synthetic"
    assert rendered == [root / "synthetic"]


@pytest.mark.parametrize("choose", [full_dataset, default_dataset])
def test_unfinished_synthetic_scenes_are_completed(root: Path, rendered: list[Path], choose: Any) -> None:
    write_synthetic(root / "synthetic")
    (root / "synthetic" / "synthetic.json").rename(root / "synthetic" / "synthetic.json.partial")
    assert choose() == root / "synthetic"
    assert rendered == [root / "synthetic"]


def test_unfinished_flyingthings3d_is_not_passed_over(root: Path, rendered: list[Path]) -> None:
    write_synthetic(root / "synthetic")
    (write_things(root / THINGS) / "prepared.json.partial").write_text("{}")
    assert full_dataset() == root / THINGS
    with pytest.raises(DataError, match=f"{THINGS}: unfinished; repeat the command"):
        open_dataset(full_dataset(), "train")
    assert rendered == []


def test_damaged_record_of_synthetic_scenes_is_said(root: Path, rendered: list[Path]) -> None:
    (write_synthetic(root / "synthetic") / "synthetic.json").write_text("{")
    for choose in (full_dataset, default_dataset):
        with pytest.raises(DataError, match=r"synthetic\.json: damaged record"):
            choose()
    assert rendered == []


@pytest.mark.parametrize("choose", [full_dataset, default_dataset])
@pytest.mark.parametrize("state", ["missing", "empty", "unfinished", "subset of others"])
def test_make_false_never_writes(
    root: Path, tmp_path: Path, rendered: list[Path], choose: Any, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if state == "missing":
        root.rmdir()
    if state == "unfinished":
        write_synthetic(root / "synthetic")
        (root / "synthetic" / "synthetic.json").rename(root / "synthetic" / "synthetic.json.partial")
    if state == "subset of others":
        (root / "unfinished-subset").mkdir()
        (root / "unfinished-subset" / "subset.json.partial").write_text("{}")
    before = contents(tmp_path)
    assert choose(make=False) is None
    assert contents(tmp_path) == before
    assert root.exists() == (state != "missing")
    assert rendered == []
    assert capsys.readouterr().err == ""


def test_make_false_finds_what_is_there(root: Path, tmp_path: Path) -> None:
    write_synthetic(root / "synthetic")
    before = contents(tmp_path)
    assert full_dataset(make=False) == default_dataset(make=False) == root / "synthetic"
    assert contents(tmp_path) == before


# --- subsets ----------------------------------------------------------------------------------------


def test_subset_is_trained_on_and_the_whole_is_what_subsets_are_made_of(root: Path) -> None:
    subset = write_subset(write_things(root / THINGS))
    assert subset == root / f"{THINGS}-subset"
    assert default_dataset() == subset
    assert full_dataset() == root / THINGS


def test_subset_of_its_own_is_preferred_to_that_of_another(root: Path) -> None:
    synthetic_subset = write_subset(write_synthetic(root / "synthetic"))
    assert default_dataset() == synthetic_subset
    write_things(root / THINGS)
    assert default_dataset() == root / THINGS  # synthetic scenes, however chosen, are no substitute
    subset = write_subset(root / THINGS)
    assert default_dataset() == subset


def test_unfinished_subset_is_not_trained_on(root: Path) -> None:
    subset = write_subset(write_things(root / THINGS))
    (subset / "subset.json").rename(subset / "subset.json.partial")
    assert default_dataset() == root / THINGS


def test_subset_that_was_brought_alone_is_used(root: Path, tmp_path: Path, rendered: list[Path]) -> None:
    write_subset(write_synthetic(tmp_path / "synthetic"), root / "synthetic-subset")
    assert default_dataset() == root / "synthetic-subset"
    write_subset(write_things(tmp_path / "things"), root / f"{THINGS}-subset")
    assert default_dataset() == root / f"{THINGS}-subset"
    assert rendered == []


def test_subset_of_flyingthings3d_is_preferred_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "synthetic-to-real" / "data"
    monkeypatch.setenv("BPFN_DATA", str(root))
    write_subset(write_synthetic(tmp_path / "synthetic"), root / "synthetic-subset")
    write_subset(write_things(tmp_path / "things"), root / f"{THINGS}-subset")
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: sorted(glob(self, pattern), reverse=True))
    assert default_dataset() == root / f"{THINGS}-subset"


def test_subset_of_a_dataset_elsewhere_goes_below_the_data_root(root: Path) -> None:
    assert subset_place(Path("/mnt/things")) == root / "things-subset"
    assert subset_place(Path("elsewhere/things")) == root / "things-subset"


# --- $BPFN_DATA is the dataset itself ---------------------------------------------------------------


@pytest.mark.parametrize("name", [THINGS, "mine"])
def test_environment_may_name_the_dataset_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = write_things(tmp_path / name)
    monkeypatch.setenv("BPFN_DATA", str(whole))
    assert full_dataset() == default_dataset() == whole
    assert subset_place(whole) == tmp_path / f"{name}-subset"  # beside it, not inside
    subset = write_subset(whole)
    assert default_dataset() == subset
    assert full_dataset() == whole


def test_environment_may_name_synthetic_scenes_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: list[Path]
) -> None:
    whole = write_synthetic(tmp_path / "rendered")
    monkeypatch.setenv("BPFN_DATA", str(whole))
    assert full_dataset() == default_dataset() == whole
    assert default_dataset() == whole
    assert rendered == []


def test_environment_may_name_a_subset_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subset = write_subset(write_things(tmp_path / "mine"), tmp_path / "part")
    monkeypatch.setenv("BPFN_DATA", str(subset))
    assert default_dataset() == subset


def test_subset_of_the_working_folder_goes_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_things(tmp_path / "mine"))
    monkeypatch.setenv("BPFN_DATA", ".")
    assert subset_place(full_dataset()).resolve() == tmp_path / "mine-subset"
