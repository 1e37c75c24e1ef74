# SPDX-License-Identifier: MIT
"""A stratified subset is distributed as the whole, and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scene_folders import contents, write_scene

from bpfn_cli.data.datasets import open_dataset
from bpfn_cli.data.subset import plan
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import choose_stratified, distributions, plan_subset
from bpfn_cli.errors import DataError, UsageError
from bpfn_cli.structures import Scene


def uneven(root: Path, scenes: int = 60) -> Path:
    """A few scenes are deep and fast; others are near and slow."""
    for index in range(scenes):
        generator = np.random.default_rng(index)
        deep = index % 10 == 0
        pc1 = generator.uniform((-5, -2, -30 if deep else -8), (5, 3, -20 if deep else -2), (50, 3))
        write_scene(root / "train" / f"{index:07d}", pc1, pc1 + generator.normal(0, 2.0 if deep else 0.1, (50, 3)))
    return root


def gaps(chosen: np.ndarray, everything: np.ndarray) -> tuple[float, float]:
    """Largest gaps between the mean `distributions` of two sets of scenes (N, 2, 40): of flow lengths, of depths."""
    flow, depth = np.abs(chosen.mean(axis=0) - everything.mean(axis=0)).max(axis=1)
    return float(flow), float(depth)


def test_distributions_by_hand() -> None:
    points = np.array([[0, 0, 1], [0, 0, 34.9]], np.float32)
    flow, depth = distributions(Scene("a", points, points, np.array([[0, 0, 0], [0, 30, 0]], np.float32)))
    assert flow[0] == 0.5  # one flow is shorter than the first edge
    assert (flow[-2], flow[-1]) == (0.5, 1.0)  # the other is beyond the last
    assert (depth[0], depth[1], depth[-2], depth[-1]) == (0.0, 0.5, 1.0, 1.0)


def test_a_choice_is_nearer_to_the_whole_than_chance(tmp_path: Path) -> None:
    dataset = open_dataset(uneven(tmp_path / "set"), "train")
    every = np.stack([distributions(dataset.load(index)) for index in range(60)])
    by_chance = [
        max(gaps(every[np.random.default_rng(seed).choice(60, 20, replace=False)], every)) for seed in range(50)
    ]
    worst = sorted(range(60), key=lambda index: index % 10 == 0)[:20]
    chosen = choose_stratified(every, worst, seed=0)
    assert len(set(chosen)) == 20
    assert max(gaps(every[chosen], every)) < min(by_chance)
    assert max(gaps(every[chosen], every)) < 0.02
    assert choose_stratified(every, worst, seed=0) == chosen
    assert sum(index % 10 == 0 for index in chosen) == 2


def test_all_scenes_and_one_scene(tmp_path: Path) -> None:
    dataset = open_dataset(uneven(tmp_path / "set", 5), "train")
    every = np.stack([distributions(dataset.load(index)) for index in range(5)])
    assert choose_stratified(every, range(5), seed=0) == [0, 1, 2, 3, 4]
    assert len(choose_stratified(every, [4], seed=0)) == 1


def test_a_subset_is_the_same_every_time_and_not_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = uneven(tmp_path / "set"), SubsetOptions(0.2, "stratified")
    for name, processes in (("a", 1), ("b", 3)):
        make_subset(source, tmp_path / name, options, processes=processes)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    names = open_dataset(tmp_path / "a", "train").names
    assert len(names) == 12
    assert sum(int(name) % 10 == 0 for name in names) in (1, 2)
    assert make_subset(source, tmp_path / "c", SubsetOptions(0.2, "stratified", seed=5)).similarity.depth < 0.1

    def refuse(*_: object) -> np.ndarray:
        raise AssertionError("measured again")

    monkeypatch.setattr(plan, "distributions", refuse)
    assert make_subset(source, tmp_path / "a", options).already_complete


def test_damaged_scenes_are_named(tmp_path: Path) -> None:
    source = uneven(tmp_path / "set", 6)
    (source / "train" / "0000003" / "pc1.npy").write_bytes(b"no")
    with pytest.raises(DataError, match=r"1 of 6 scenes are damaged.*0000003"):
        plan_subset(source, SubsetOptions(0.5, "stratified"))


def test_offset_is_for_stride_alone() -> None:
    with pytest.raises(UsageError, match="only for method stride"):
        SubsetOptions(0.2, "stratified", offset=1)
