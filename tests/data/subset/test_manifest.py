# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bpfn_cli.data.names import check_scene_name
from bpfn_cli.data.subset.manifest import (
    Extent,
    FileRecord,
    Similarity,
    SubsetManifest,
    SubsetOptions,
    SubsetTask,
    read_manifest,
    read_task,
)
from bpfn_cli.errors import DataError, UsageError

RECORD = FileRecord(3, "a" * 64)
CLOUDS = {"pc1.npy": RECORD, "pc2.npy": RECORD}
MANIFEST = SubsetManifest(
    SubsetTask("data/source", "synthetic", "b" * 64, SubsetOptions(0.5, seed=-3)),
    before=Extent(4, 1, 30),
    after=Extent(2, 1, 18),
    similarity=Similarity(0.25, 0.0, 4, 2, 1000),
    files={"train": {"0000001": CLOUDS, "0000003": CLOUDS}, "val": {"0000000": CLOUDS}},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "subset.json"


def damaged(path: Path, **changes: object) -> Path:
    document = {**MANIFEST.document(), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value != "absent"}))
    return path


def test_manifest_reads_as_it_was_written(path):
    path.write_text(json.dumps(MANIFEST.document()))
    assert read_manifest(path) == MANIFEST
    assert read_task(path) == MANIFEST.task
    assert read_manifest(path).names() == {"train": ("0000001", "0000003"), "val": ("0000000",)}


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/x",
        "a/b",
        "",
        ".",
        "..",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "\ud800",
        "n" * 256,
        ".hidden",
        "é" * 128,
    ],
)
def test_manifest_naming_anything_but_a_folder_is_refused(path, name):
    files = {"train": {name: MANIFEST.document()["files"]["val"]["0000000"]}, "val": {}}
    damaged(path, files=files, after={"train_scenes": 1, "val_scenes": 0, "bytes": 6})
    with pytest.raises(DataError, match="cannot be a scene name") as refused:
        read_manifest(path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["-f", "a b", "été", "scene..1", "中文", "n" * 255])
def test_odd_names_that_are_safe_are_kept(name):
    assert check_scene_name(name, Path("x")) == name


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"format": 2}, "format 1"),
        ({"kind": "run"}, "format 1"),
        ({"source_kind": "kitti"}, "source_kind"),
        ({"source": 3}, "source: Input should be a valid string"),
        ({"source_sha256": "B" * 64}, "source_sha256: String should match"),
        ({"seed": "0"}, "seed: Input should be a valid integer"),
        ({"seed": True}, "seed: Input should be a valid integer"),
        ({"offset": -1}, "offset"),
        ({"fraction": 0}, "fraction 0"),
        ({"fraction": 2}, "fraction 2: use a number"),
        ({"fraction": True}, "fraction: Input should be a valid number"),
        ({"fraction": "absent"}, "fraction: missing"),
        ({"val_fraction": "half"}, "val_fraction"),
        ({"method": "random"}, "method: Input should be 'hash'"),
        ({"method": ["hash"]}, "method: Input should be 'hash'"),
        ({"link": None}, "link: Input should be 'auto'"),
        ({"link": "move"}, "link: Input should be 'auto'"),
        ({"before": []}, "before"),
        ({"after": {"train_scenes": 3, "val_scenes": 1, "bytes": 18}}, "does not match the scenes in files"),
        ({"kolmogorov_smirnov": {}}, "flow_length"),
        ({"files": {"train": {}}}, "files"),
        ({"files": {"train": {}, "val": {}, "test": {}}}, "files"),
        ({"files": {"train": {"a": {"pc1.npy": {}}}, "val": {}}}, r"files\.train\.a\.pc1\.npy\.bytes: Field required"),
        ({"files": {"train": {"a": {"pc1.npy": {}, "pc2.npy": {}}}, "val": {}}}, "bytes"),
    ],
)
def test_damaged_manifest_says_what_is_wrong(path, changes, fault):
    with pytest.raises(DataError, match=fault) as refused:
        read_manifest(damaged(path, **changes))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": 1, "a": 2}',
        b'{"seed": NaN}',
        b"9" * 5000,
        b"PK\x03\x04",
    ],
)
def test_what_is_no_manifest_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_manifest(path)


def test_mutated_manifest_is_read_or_refused_and_nothing_else(path):
    whole = json.dumps(MANIFEST.document()).encode()
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        mutated = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            start = generator.randrange(len(mutated))
            mutated[start : start + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
        path.write_bytes(mutated)
        try:
            read_manifest(path)
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 200


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"fraction": 0}, "fraction 0:"),
        ({"fraction": -0.2}, "fraction -0.2"),
        ({"fraction": 1.01}, "fraction 1.01"),
        ({"fraction": float("nan")}, "fraction nan"),
        ({"fraction": 1e-320, "method": "stride"}, "fraction"),
        ({"val_fraction": 0}, "val_fraction 0"),
        ({"method": "random"}, "use one of hash, stride, stratified"),
        ({"link": "move"}, "use one of auto, copy, hard, symlink"),
        ({"offset": 1}, "only for method stride"),
        ({"method": "stride", "seed": 1}, "method stride draws nothing"),
        ({"method": "stride", "offset": 5}, "use 0 to 4"),
        ({"method": "stride", "offset": -1}, "use 0 to 4"),
        ({"method": "stride", "fraction": 0.8}, "stride would keep every scene"),
        ({"method": "stride", "offset": 3, "val_fraction": 0.5}, "use 0 to 1 for val_fraction"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused(values, fault):
    with pytest.raises(UsageError, match=fault):
        SubsetOptions(**values)


def test_label_names_share_method_and_draw():
    assert SubsetOptions().label() == "1/5 subset, hash, seed 0"
    assert SubsetOptions(0.3, seed=2).label() == "0.3 subset, hash, seed 2"
    assert SubsetOptions(0.3, "stride", offset=1).label() == "1/3 subset, stride, offset 1"
    assert SubsetOptions(1 / 3).label() == "1/3 subset, hash, seed 0"
    assert SubsetOptions(val_fraction=0.5).label("val") == "1/2 subset, hash, seed 0"


def test_tasks_differ_in_what_was_asked_and_in_the_source_but_not_in_where_it_lies():
    task = MANIFEST.task
    moved = SubsetTask("elsewhere", task.source_kind, task.source_sha256, task.options)
    other = SubsetTask(task.source, task.source_kind, "c" * 64, SubsetOptions(0.5, seed=4))
    assert moved.differences(task) == []
    assert other.differences(task) == ["seed 4, not -3", "another source, or one that changed"]
