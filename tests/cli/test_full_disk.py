# SPDX-License-Identifier: MIT
"""Commands whose disk is full when they write."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import bpfn, refused
from run_folders import evaluation, record
from tiny_world import LEAST, Scenes, tiny_network, write_things

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.files import sha256_of
from bpfn_cli.models import save_checkpoint

FULL = "no space left on the disk"


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights, a pair of clouds, and a run with an evaluation whose scenes can be shown."""
    folder = tmp_path / "work"
    run, scene = folder / "runs" / "one", Scenes(points=LEAST).load(0)
    (run / "evaluations").mkdir(parents=True)
    np.save(folder / "a.npy", scene.pc1)
    np.save(folder / "b.npy", scene.pc2)
    save_checkpoint(folder / "tiny.safetensors", tiny_network())
    save_checkpoint(run / "student.safetensors", tiny_network())
    things = open_dataset(write_things(folder / "things", val=2), "test")
    dataset = {"kind": "flyingthings3d", "split": "test", "path": "things", "scenes": 2, "sha256": things.identity()}
    weights = {"which": "best", "sha256": sha256_of(run / "student.safetensors")}
    rows = [{"name": name, "model": 0.1} for name in things.names]
    content = evaluation(0.3, dataset=dataset, checkpoint=weights, points=LEAST, scenes=rows)
    (run / "run.json").write_text(json.dumps(record(weights_sha256=weights["sha256"])))
    (run / "evaluations" / "a.json").write_text(json.dumps(content))
    return folder


def entries(folder: Path) -> set[Path]:
    return {*folder.rglob("*")}


def test_int8_export_leaves_nothing_on_a_full_temporary_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(model: Any, path: Path) -> None:
        path.write_bytes(model.SerializeToString()[:100])
        no_space()

    temporary, before = tmp_path / "temporary", entries(folder)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr("onnx.save", save)
    words = ("export", "--checkpoint", "tiny.safetensors", "--precision", "int8", "--scenes", 4)
    refused(bpfn(*words, "--out", "new/int8.onnx", cwd=folder), 5, str(temporary), FULL)
    assert entries(folder) == before
    assert not entries(temporary)


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (("view", "a.npy", "b.npy", "--checkpoint", "tiny.safetensors", "--out", "new/pages/ab.html"), "ab.html"),
        (("report", "--html", "new/page"), "scenes/one_flyingthings3d_0000000.html"),
        (("report", "--html", "new/page", "--scenes", 0), "index.html"),
        (("report", "--figures", "new/figures", "--out", "new/tables"), "report.md"),
    ],
    ids=["view", "report, a scene", "report, its page", "report, its tables"],
)
def test_page_on_a_full_disk_is_one_line_and_leaves_nothing(
    folder: Path, words: tuple[object, ...], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = entries(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        refused(bpfn(*words, cwd=folder), 5, f"{file}: {FULL}")
    assert entries(folder) == before


@pytest.mark.parametrize(
    ("words", "page"),
    [(("view", "a.npy", "b.npy", "--flow", "flow.npy"), "scene.html"), (("report", "--html", "."), "index.html")],
    ids=["view", "report"],
)
def test_page_that_cannot_be_overwritten_is_kept(
    folder: Path, words: tuple[object, ...], page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(folder / "flow.npy", np.zeros((LEAST, 3), np.float32))
    (folder / page).write_text("an older page")
    before = entries(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        refused(bpfn(*words, "--force", "--scenes", 1, cwd=folder), 5, ".html", FULL)
    assert (folder / page).read_text() == "an older page"
    assert entries(folder) == before
