# SPDX-License-Identifier: MIT
"""A teacher at work: once a batch, never trained, from disk where that is the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import POINTS, SMALLER, TINY, batch_of, network

from bpfn_cli.errors import DataError, DiskError
from bpfn_cli.losses import build_losses
from bpfn_cli.losses.features import FIELDS
from bpfn_cli.models import BASELINE, build_model
from bpfn_cli.recipes.recipe import CONTROL_NAMES
from bpfn_cli.strategies import PlainStrategy, Teacher, TeacherCache
from bpfn_cli.strategies import teacher_cache as module
from bpfn_cli.strategies.teacher import CONTROLS, random_adapter, shuffle_points
from bpfn_cli.strategies.teacher_cache import bytes_per_sample, cache_key
from bpfn_cli.structures import FlowBatch, FlowPyramid

READS = frozenset({"flows", "bfe_source", "bfe_neighbors"})


def given(names: tuple[str, ...] = ("scene0", "scene1"), view: str = "0-1") -> tuple[FlowBatch, FlowPyramid]:
    batch = replace(batch_of(2), names=names, view=view)
    with torch.no_grad():
        return batch, network(SMALLER, 1)(batch.pc1, batch.pc2)


def test_network_is_run_once_for_a_batch_and_anew_for_the_next() -> None:
    teacher, (batch, student) = Teacher(network()), given()
    first = teacher(batch, student)
    assert teacher(batch, student) is first
    assert teacher.forwards == 1
    teacher(replace(batch), student)
    assert teacher.forwards == 2
    teacher.forget()
    teacher(batch, student)
    assert teacher.forwards == 3


def test_outputs_have_no_gradient_and_share_the_students_pyramid() -> None:
    network_ = network()
    network_.train()
    teacher, (batch, student) = Teacher(network_), given()
    output = teacher(batch, student)
    assert output.pyramid is student.pyramid
    assert not output.flows[0].requires_grad
    assert not network_.training
    assert not any(parameter.requires_grad for parameter in network_.parameters())


def test_shuffled_outputs_are_the_same_rows_elsewhere_the_same_way_every_time() -> None:
    batch, student = given()
    output = Teacher(network())(batch, student)
    once, twice = shuffle_points(output), shuffle_points(output)
    for level, (flow, dealt) in enumerate(zip(output.flows, once.flows, strict=True)):
        assert not torch.equal(flow, dealt)
        assert torch.equal(dealt, twice.flows[level])
        assert torch.equal(flow.sort(dim=1).values, dealt.sort(dim=1).values)
    assert once.sample_indices1 is output.sample_indices1


def test_random_adapter_maps_the_features_linearly_and_leaves_the_flows() -> None:
    batch, student = given()
    output = Teacher(network())(batch, student)
    once, twice = random_adapter(output), random_adapter(output)
    scaled = random_adapter(output.mapped(lambda _, tensor: 3 * tensor))
    assert all(a is b for a, b in zip(output.flows, once.flows, strict=True))
    assert once.bfe_neighbors is output.bfe_neighbors
    for field in FIELDS.values():
        levels = (getattr(one, field) for one in (output, once, twice, scaled))
        for before, after, again, thrice in zip(*levels, strict=True):
            assert before.shape == after.shape and before.dtype == after.dtype
            assert not torch.allclose(before, after)
            assert torch.equal(after, again)
            assert torch.allclose(thrice, 3 * after, rtol=1e-4, atol=1e-5)


def test_random_adapters_are_different_maps_with_columns_of_length_one() -> None:
    one = torch.eye(8)[None]
    output = FlowPyramid([one], {}, {}, [one, one], [one], [], [one], pyramid=None)
    adapted = random_adapter(output)
    maps = [*adapted.bfe_source, *adapted.bfe_target, *adapted.estimator_features]
    for found in maps:  # the image of the identity is the map itself
        assert torch.allclose(found[0].norm(dim=0), torch.ones(8))
    assert all(not torch.allclose(a, b) for a, b in combinations(maps, 2))
    assert adapted.bfe_embedding == []


def test_every_control_of_a_recipe_that_changes_outputs_is_known() -> None:
    assert {*CONTROLS, "random"} == set(CONTROL_NAMES)


def fields(output: FlowPyramid) -> list[Tensor]:
    return [tensor for name in sorted(READS) for tensor in getattr(output, name)]


def test_what_comes_from_disk_is_what_was_computed(tmp_path: Path) -> None:
    batch, student = given()
    caches = [TeacherCache(tmp_path, READS) for _ in range(2)]
    teachers = [Teacher(network(), cache=cache) for cache in caches]
    first, second = (teacher(batch, student) for teacher in teachers)
    assert [(cache.found, cache.missed) for cache in caches] == [(0, 2), (2, 0)]
    assert all(torch.equal(a, b) for a, b in zip(fields(first), fields(second), strict=True))
    assert second.bfe_target == []  # not stored, so that a loss that reads it says so
    assert second.pyramid is student.pyramid
    assert teachers[1].forwards == 1  # one sample is computed again


def test_samples_are_found_in_batches_of_other_scenes(tmp_path: Path) -> None:
    batch, student = given()
    Teacher(network(), cache=TeacherCache(tmp_path, READS))(batch, student)
    rows = [1, 0]
    turned = replace(batch, pc1=batch.pc1[rows], pc2=batch.pc2[rows], flow=batch.flow[rows], names=batch.names[::-1])
    cache = TeacherCache(tmp_path, READS)
    with torch.no_grad():
        output = Teacher(network(), cache=cache)(turned, network(SMALLER, 1)(turned.pc1, turned.pc2))
        exact = network()(turned.pc1, turned.pc2)
    assert cache.found == 2
    assert torch.allclose(output.flows[0], exact.flows[0], atol=1e-5)


def test_one_sample_an_epoch_is_verified(tmp_path: Path) -> None:
    batch, student = given()
    other = replace(batch, view="0-2")
    for each in (batch, other):
        Teacher(network(), cache=TeacherCache(tmp_path, READS))(each, student)
    teacher = Teacher(network(), cache=TeacherCache(tmp_path, READS))
    for each, forwards in ((batch, 1), (other, 1)):
        teacher(each, student)
        assert teacher.forwards == forwards
    teacher.begin_epoch()  # the same view may come again
    for each, forwards in ((replace(batch), 2), (replace(other), 2)):
        teacher(each, student)
        assert teacher.forwards == forwards
    impostor = Teacher(network(seed=5), cache=TeacherCache(tmp_path, READS))
    with pytest.raises(DataError, match="differs from the teacher's output; delete"):
        impostor(batch, student)


def test_scene_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    batch, student = given(names=("../../evil", "a/b c\n" + "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 60))
    folder = tmp_path / "deep" / "cache"
    Teacher(network(), cache=TeacherCache(folder, READS))(batch, student)
    assert sorted(path.parent for path in tmp_path.rglob("*.safetensors")) == [folder / "0-1"] * 2
    cache = TeacherCache(folder, READS)
    Teacher(network(), cache=cache)(batch, student)
    assert cache.found == 2


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_file_is_computed_again_and_replaced(tmp_path: Path, content: bytes | None) -> None:
    batch, student = given()
    Teacher(network(), cache=TeacherCache(tmp_path, READS))(batch, student)
    (victim, *_) = sorted(tmp_path.rglob("*.safetensors"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-7] if content is None else content)
    cache = TeacherCache(tmp_path, READS)
    Teacher(network(), cache=cache)(batch, student)
    assert cache.missed == 2
    assert victim.read_bytes() == whole


def test_full_disk_ends_the_writing_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise DiskError(f"{path}: no space left")

    monkeypatch.setattr(module, "_replace", full)
    batch, student = given()
    cache = TeacherCache(tmp_path, READS)
    output = Teacher(network(), cache=cache)(batch, student)
    assert output.flows[0].shape == student.flows[0].shape
    assert "no space left" in cache.full


def test_key_is_of_all_that_outputs_depend_on() -> None:
    key = cache_key("a", {"points": 1024}, READS)
    assert key == cache_key("a", {"points": 1024}, READS)
    others = [cache_key("b", {"points": 1024}, READS), cache_key("a", {"points": 2048}, READS)]
    others.append(cache_key("a", {"points": 1024}, frozenset({"flows"})))
    assert len({key, *others}) == 4


def test_bytes_of_a_sample_are_those_of_the_file(tmp_path: Path) -> None:
    batch, student = given()
    Teacher(network(), cache=TeacherCache(tmp_path, READS))(batch, student)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    expected = bytes_per_sample(TINY, POINTS, READS)
    assert all(expected < size < expected + 2000 for size in sizes)
    # 8,192 points of the baseline: (8192 + 2048 + 512 + 256) points of 3 floats.
    assert bytes_per_sample(BASELINE, 8192, frozenset({"flows"})) == 132_096


def test_networks_return_encoder_features_only_for_losses_that_compare_them() -> None:
    for options, expected in (({}, False), ({"bihint": {"branches": "encoder"}}, True)):
        student, teacher = build_model(SMALLER, POINTS), build_model(TINY, POINTS)
        objective = build_losses(["bihint"], SMALLER, TINY, {"calibration_step": 0, **options})
        strategy = PlainStrategy(student, Teacher(teacher), objective, weight_decay=0, clip_norm=None)
        assert (student.encoder_features, teacher.encoder_features) == (expected, expected)
        assert strategy.step(batch_of(), 1e-3)["bihint"].weighted > 0
