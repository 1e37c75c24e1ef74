# SPDX-License-Identifier: MIT
"""`bpfn view`: what it writes, and what it refuses before any work."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Result, bpfn, refused, succeeded
from scene_folders import write_scene
from tiny_world import LEAST, tiny_network

from bpfn_cli.models import save_checkpoint
from bpfn_cli.viewing import libraries

POINTS = LEAST + 20
WEIGHTS = ("--checkpoint", "tiny.safetensors")
SHIFT = np.float32([0.2, -0.1, 0.3])
PNG = b"\x89PNG"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "tiny.safetensors", tiny_network())
    cloud = np.random.default_rng(0).uniform((-15, -1, 2), (15, 3, 30), (POINTS, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", cloud)
    np.save(tmp_path / "b.npy", cloud[5:] + SHIFT)
    np.save(tmp_path / "flow.npy", np.tile(SHIFT, (POINTS, 1)))
    return tmp_path


def view(work: Path, *words: object) -> Result:
    return succeeded(bpfn("view", *words, cwd=work))


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def names_in(page: Path) -> list[str]:
    return [panel["name"] for panel in data_of(page)["panels"]]


def test_flows_and_networks_are_shown_side_by_side(work: Path) -> None:
    save_checkpoint(work / "other.safetensors", tiny_network(1))
    done = view(work, "a.npy", "b.npy", "--flow", "flow.npy", *WEIGHTS, "--checkpoint", "other.safetensors", "--png")
    page = work / "scene.html"
    assert names_in(page) == ["flow", "tiny", "other"]
    shown = np.frombuffer(base64.b64decode(data_of(page)["panels"][0]["flow"]), "<f4").reshape(-1, 3)
    assert np.array_equal(shown, np.load(work / "flow.npy"))
    assert (work / "scene.png").read_bytes().startswith(PNG)
    assert "a: flow: mean flow 0.374 m" in done.stdout
    assert f"open {page}" in done.stderr


def test_given_flow_needs_no_network(work: Path) -> None:
    view(work, "a.npy", "b.npy", "--flow", "flow.npy", "--out", "still.png")
    assert (work / "still.png").read_bytes().startswith(PNG) and not (work / "scene.html").exists()


def test_flow_of_predict_is_shown(work: Path) -> None:
    succeeded(bpfn("predict", "a.npy", "b.npy", *WEIGHTS, "--out", "ab.npz", cwd=work))
    view(work, "a.npy", "b.npy", "--flow", "ab.npz", *WEIGHTS)
    first, second = data_of(work / "scene.html")["panels"]
    assert first["flow"] == second["flow"]


def test_folder_becomes_pages_of_chosen_scenes(work: Path) -> None:
    for number in range(3):
        write_scene(work / "scenes" / f"{number:06d}", np.load(work / "a.npy"), np.load(work / "a.npy") + SHIFT)
    view(work, "scenes", *WEIGHTS, "--scenes", 2, "--frame", "internal", "--out", "pages")
    assert sorted(path.name for path in (work / "pages").iterdir()) == ["000000.html", "000001.html"]


def test_run_is_shown_on_its_test_scenes(work: Path, make_run: Callable[..., Any]) -> None:
    for name in ("000002", "000069"):
        write_scene(work / "kitti" / name, np.load(work / "a.npy"), np.load(work / "a.npy") + SHIFT)
    run = make_run("mine", paths={"data": "/nowhere", "test": str(work / "kitti"), "device": "cpu"})
    save_checkpoint(run / "student.safetensors", tiny_network())
    view(work, run, "--scenes", 1)
    assert names_in(work / "view" / "000002.html") == ["mine", "true flow"]
    gone = make_run("gone", paths={"data": str(work / "missing"), "device": "cpu"})
    refused(bpfn("view", gone, cwd=work), 3, "is not here", "bpfn view SCENE --checkpoint")
    refused(bpfn("view", run, "a.npy", cwd=work), 2, "is a run folder")


def test_faults_are_found_before_any_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ("a.npy", "b.npy")
    (work / "scene.html").write_text("mine")
    refused(bpfn("view", *pair, "--checkpoint", "none.safetensors", cwd=work), 5, "scene.html: exists")
    refused(bpfn("view", *pair, "--out", "a.txt", cwd=work), 2, "use .html for a page, or .png for a picture")
    refused(bpfn("view", *pair, "--frame", "lidar", "--axes", "left,up,forward", cwd=work), 2, "only one of them")
    np.save(work / "short.npy", np.zeros((3, 3), np.float32))
    refused(bpfn("view", *pair, "--flow", "short.npy", "--force", cwd=work), 3, "short.npy", "(3, 3)")
    assert (work / "scene.html").read_text() == "mine"
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    refused(bpfn("view", *pair, "--png", cwd=work), 2, "need jinja2 and matplotlib", "pip install")


@pytest.mark.parametrize("ending", [".ply", ".pcd", ".npz"])
def test_predict_writes_other_formats(work: Path, ending: str) -> None:
    out = f"ab{ending}"
    succeeded(bpfn("predict", "a.npy", "b.npy", *WEIGHTS, "--out", out, "--pose", "estimate", cwd=work))
    assert {out, f"ab.residual{ending}", "ab.pose.txt"} <= {path.name for path in work.iterdir()}


def test_predict_refuses_an_unknown_format_first(work: Path) -> None:
    refused(bpfn("predict", "a.npy", "b.npy", "--out", "f.xyz", *WEIGHTS, cwd=work), 2, "use .npy, .npz, .ply, .pcd")
    (work / "clouds").mkdir()
    for name in ("a.npy", "b.npy"):
        (work / name).rename(work / "clouds" / name)
    refused(bpfn("predict", "clouds", "--out", "flows.ply", *WEIGHTS, cwd=work), 2, "need a folder; leave out .ply")
