# SPDX-License-Identifier: MIT
"""Sizes of a network from names, checkpoints, YAML files and keys of recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import LEAST, TINY, tiny_network

from bpfn_cli import shipped
from bpfn_cli.config import build, parse_yaml, settings, to_tree, to_yaml
from bpfn_cli.errors import CheckpointError, UsageError
from bpfn_cli.models import BASELINE, VARIANTS, Separable, Variant, build_model, find_variant, save_checkpoint, slim
from bpfn_cli.models.sizes import AnyVariant, is_checkpoint, sizes_identity, variant_tree
from bpfn_cli.models.variants import infer_variant

OWN = slim(VARIANTS["half"], "own", width=0.1, c_mid=(1, 2, 3, 4, 5), bottleneck=2, neighbors={"estimator": 5})

NARROW = replace(
    BASELINE,
    name="narrow",
    levels=(replace(BASELINE.levels[0], estimator=40, estimator_features=20), *BASELINE.levels[1:]),
)


@settings
class Chosen:
    variant: AnyVariant = BASELINE


def read(text: str) -> Variant:
    return build(Chosen, parse_yaml(text, "recipe.yaml")).variant


@pytest.mark.parametrize("variant", [*VARIANTS.values(), OWN, NARROW], ids=lambda one: one.name)
def test_every_variant_reads_back_from_its_tree(variant: Variant) -> None:
    assert read(to_yaml({"variant": variant_tree(variant)})) == variant
    assert to_tree(Chosen(variant=variant)) == {"variant": variant_tree(variant)}
    assert (variant_tree(variant) == variant.name) is (variant not in (OWN, NARROW))


def test_keys_change_the_base_by_hand() -> None:
    made = read("variant: {base: weightnet48, name: mine, width: 0.5, neighbors: {embedding: 8}, bn: true}")
    assert [level.width for level in made.levels] == [16, 32, 64, 128, 128]
    assert [level.embedding for level in made.levels] == [16, 32, 64, 128, 0]
    assert [level.context for level in made.levels] == [32, 32, 64, 64, 0]
    assert [level.c_mid for level in made.levels] == [4, 4, 4, 8, 8]
    neighbors = made.encoder_neighbors, made.embedding_neighbors, made.estimator_neighbors
    assert (made.name, made.bn, neighbors) == ("mine", True, (16, 8, 9))
    made = read("variant: {widths: {encoder: [10, 20, 30, 40, 50]}, width: 0.5, reductions: [2, 2, 2, 2], c_mid: 3}")
    assert [level.width for level in made.levels] == [5, 10, 15, 20, 25]
    assert [level.expanded for level in made.levels] == [32, 64, 128, 256, 0]
    assert (made.reductions, {level.c_mid for level in made.levels}, made.name) == ((2, 2, 2, 2), {3}, "custom")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", Separable((1, 2, 3, 4), (0, 1, 2, 3))),
        ("false", Separable()),
        ("[4, 3]", Separable(encoder=(3, 4))),
        ("{estimators: [0]}", Separable(estimators=(0,))),
        ("{encoder: [1, 4], estimators: [3, 2]}", Separable((1, 4), (2, 3))),
    ],
)
def test_separable_levels_of_each_part(text: str, expected: Separable) -> None:
    made = read(f"variant: {{base: declinear, name: mine, separable: {text}}}")
    assert made.separable == expected
    assert build(Chosen, parse_yaml(to_yaml({"variant": variant_tree(made)}), "x")).variant == made
    assert sizes_identity(read("variant: {separable: [3, 4], residual: [16, 32, 64, 64]}")) == "declinear34"


def test_residual_blocks_of_a_base_are_scaled_replaced_and_removed() -> None:
    assert read("variant: {base: declinear34, width: 0.5}").residual == (8, 16, 32, 32)
    made = read("variant: {base: declinear34, width: 0.5, residual: [2, 4, 6, 8]}")
    assert made.residual == (1, 2, 3, 4)
    assert read(to_yaml({"variant": variant_tree(made)})) == made
    plain = read("variant: {base: declinear34, residual: []}")
    assert plain == slim(BASELINE, "custom", separable=Separable(encoder=(3, 4)))
    assert "residual" not in variant_tree(plain)  # as in recipes of earlier versions
    with pytest.raises(UsageError, match=r"residual \[1, 2\]: use four widths \(levels 0 to 3\), or none"):
        read("variant: {residual: [1, 2]}")


def test_levels_that_a_part_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match=r"variant\.separable\.encoder\.1: input should be less than or equal to 4"):
        read("variant: {separable: [3, 5]}")
    with pytest.raises(UsageError, match=r"unknown key variant\.separable\.estimator"):
        read("variant: {separable: {estimator: [0]}}")
    with pytest.raises(UsageError, match="input should be an object, got 3"):
        read("variant: {separable: 3}")


def test_equal_sizes_have_one_identity_whatever_their_names() -> None:
    written = read("variant: {name: mine, c_mid: [4, 4, 4, 8, 8]}")
    assert (written.name, sizes_identity(written)) == ("mine", "weightnet48")
    assert read("variant: {c_mid: [4, 4, 4, 8, 8]}") == VARIANTS["weightnet48"]
    assert sizes_identity(replace(OWN, name="other")) == sizes_identity(OWN)
    assert sizes_identity(replace(OWN, estimator_neighbors=6)) != sizes_identity(OWN)
    assert "own" not in str(sizes_identity(OWN))


def test_checkpoint_stands_for_its_sizes_and_its_file_names_them(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "mine.safetensors", build_model(replace(OWN, name="custom")))
    save_checkpoint(tmp_path / "file.safetensors", build_model(OWN))
    torch.save(tiny_network().state_dict(), tmp_path / "a b.pth")
    assert find_variant(str(tmp_path / "mine.safetensors")) == replace(OWN, name="mine")
    assert find_variant(str(tmp_path / "file.safetensors")) == OWN
    assert find_variant(str(tmp_path / "a b.pth")) == replace(TINY, name="a_b")
    assert read(f"variant: {{base: '{tmp_path}/a b.pth', name: c, c_mid: 2}}") == slim(TINY, "c", c_mid=2)


def test_checkpoint_does_not_take_the_name_of_a_variant(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "half.safetensors", build_model(replace(OWN, name="custom")))
    assert find_variant(str(tmp_path / "half.safetensors")).name == "custom"


def test_shipped_network_stands_for_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "outdoor.safetensors", tiny_network())
    card: Any = None
    known = {"outdoor": shipped.ShippedNetwork("outdoor", tmp_path / "outdoor.safetensors", card)}
    for module in ("bpfn_cli.shipped", "bpfn_cli.models.sizes"):
        monkeypatch.setattr(f"{module}.shipped_networks", lambda: known)
    assert find_variant("outdoor") == TINY
    with pytest.raises(UsageError, match=r"did you mean outdoor\?"):
        find_variant("outdor")
    assert is_checkpoint("outdoor") and not is_checkpoint("baseline") and not is_checkpoint("mine.yaml")


def test_yaml_file_of_sizes_is_named_after_the_file_unless_it_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: weightnet4\nseparable: true\n")
    expected = slim(VARIANTS["weightnet4"], "mine", separable=True)
    assert find_variant(str(path)) == expected
    path.write_text("base: weightnet4\nseparable: true\nname: own\n")
    assert read(f"variant: {path}") == replace(expected, name="own")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width: 9", "mine.yaml: line 1: width: input should be less than or equal to 4, got 9"),
        ("c_mid: [4, 4]", "mine.yaml: line 1: c_mid: .*at least 5 items"),
        ("wdith: 1", "mine.yaml: line 1: unknown key wdith, did you mean width?"),
        ("name: baseline\nwidth: 0.5", "mine.yaml: baseline: these are not the sizes of the variant of this name"),
        ("base: mine.yaml", "mine.yaml: base mine.yaml: a base is a variant or a checkpoint"),
        ("base: half\nseparable: true\nc_mid: 5", "mine.yaml: separable: c_mid 5 of level 0 must divide"),
        ("name: ../x", "mine.yaml: line 1: name: string should match pattern"),
        ("- 1", "mine.yaml: a recipe maps keys to values, but this is a list"),
    ],
)
def test_mistakes_in_a_file_of_sizes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(UsageError, match=expected):
        find_variant("mine.yaml")


def test_mistakes_in_a_recipe_come_all_at_once_with_their_lines() -> None:
    with pytest.raises(UsageError) as caught:
        read("variant:\n  width: 9\n  neighbors: {encodr: 1}\n  widths: {context: [1, 2, 3, 0]}\nother: 1")
    for phrase in (
        "line 2: variant.width",
        "line 3: unknown key variant.neighbors.encodr, did you mean variant.neighbors.encoder?",
        "line 4: variant.widths.context.3: input should be greater than or equal to 1",
        "line 5: unknown key other",
    ):
        assert phrase in str(caught.value)
    with pytest.raises(UsageError, match=r"line 1: variant: unknown variant 'hlaf', did you mean half\?"):
        read("variant: hlaf")
    with pytest.raises(UsageError, match=r"line 1: variant: .*no such file of sizes"):
        read("variant: none.yaml")
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        read("variant: none.pth")


def test_least_points_suffice_for_every_search() -> None:
    assert TINY.least_points == LEAST == 1024
    assert slim(TINY, "few", neighbors={"embedding": 4, "encoder": 20}).least_points == 20 * 32
    few = slim(TINY, "few", neighbors={"embedding": 1, "encoder": 1, "estimator": 1})
    assert few.least_points == 3 * 128  # to interpolate from level 4
    cloud = torch.rand(1, 3 * 128, 3)
    assert build_model(few, 3 * 128)(cloud, cloud).flows[0].shape == (1, 3 * 128, 3)


def test_widths_of_the_estimators_by_hand(tmp_path: Path) -> None:
    made = read(
        "variant: {name: narrow, widths: {estimator: [40, 128, 128, 128], estimator_features: [20, 64, 64, 64]}}"
    )
    assert made == NARROW
    network = build_model(NARROW, 1024)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["flow0.pointconv_list.1.linear.weight"] == (40, 16 * (3 + 40))
    assert shapes["flow0.fc.weight"] == (3, 20, 1)
    save_checkpoint(tmp_path / "narrow.safetensors", network)
    assert find_variant(str(tmp_path / "narrow.safetensors")) == NARROW
    assert infer_variant(shapes, "x") == replace(NARROW, name="custom")
    # Features of level 1 enter level 0: 3 offsets, 32 of the encoder, 64 features, 32 of the embedding.
    wide = find_variant("baseline")
    levels = (*wide.levels[:1], replace(wide.levels[1], estimator_features=10), *wide.levels[2:])
    finer = build_model(replace(wide, levels=levels), 1024).state_dict()["flow0.pointconv_list.0.linear.weight"]
    assert finer.shape == (128, 16 * (3 + 32 + 10 + 32))
