# SPDX-License-Identifier: MIT
"""Every surprise of YAML, and every mistake of a recipe, in one line."""

from __future__ import annotations

import time
from dataclasses import field
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import Field

from bpfn_cli.config import build, merge, override, parse_yaml, read_yaml, settings, to_tree, to_yaml
from bpfn_cli.errors import UsageError


@settings
class Inner:
    lr: Annotated[float, Field(gt=0, le=1)] = 0.1
    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    augment: bool = True


@settings
class Outer:
    name: str = "x"
    sizes: tuple[int, ...] = (1, 2)
    rate: float | None = None
    train: Inner = field(default_factory=Inner)


def read(text: str) -> Outer:
    return build(Outer, parse_yaml(text, "r.yaml"))


def refused(text: str) -> str:
    with pytest.raises(UsageError) as error:
        read(text)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("r.yaml: ")
    assert error.value.exit_code == 2
    return message


def test_recipe_is_read() -> None:
    found = read("name: a b\nsizes: [4, 5]\ntrain:\n  lr: 0.5\n  augment: false\n")
    assert found == Outer(name="a b", sizes=(4, 5), train=Inner(lr=0.5, augment=False))
    assert read("{}") == Outer()


def test_unknown_key_suggests_the_nearest() -> None:
    assert refused("train:\n  lrr: 0.5\n") == "r.yaml: line 2: unknown key train.lrr, did you mean train.lr?"
    assert "did you mean train?" in refused("trian: {}\n")


def test_unknown_key_without_a_near_one_lists_the_known_ones() -> None:
    assert refused("train:\n  learning_rate: 1\n").startswith(
        "r.yaml: line 2: unknown key train.learning_rate; known: "
    )


def test_wrong_type_names_key_and_line() -> None:
    message = refused("name: a\ntrain:\n  epochs: many\n")
    assert "line 3: train.epochs" in message
    assert "'many'" in message


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "1E-3", ".001", "+1e-3"])
def test_floats_in_every_notation_are_floats(text: str) -> None:
    assert read(f"train: {{lr: {text}}}").train.lr == pytest.approx(1e-3)
    assert isinstance(read(f"rate: {text}").rate, float)


def test_integer_is_taken_for_a_float_but_not_the_reverse() -> None:
    assert read("train: {lr: 1}").train.lr == 1.0
    assert "train.epochs" in refused("train: {epochs: 2.5}")


def test_duplicate_key_names_both_lines() -> None:
    message = refused("name: a\ntrain: {}\nname: b\n")
    assert message == "r.yaml: line 3: duplicate key name, first on line 1; remove one"
    assert "line 3: duplicate key lr, first on line 2" in refused("train:\n  lr: 1\n  lr: 0.5\n")
    assert "line 1: duplicate key lr, first on line 1" in refused("train: {lr: 1, lr: 0.5}")
    assert "duplicate key 1, first on line 1" in refused("1: a\n'1': b\n")


def test_alias_bomb_is_refused_at_once() -> None:
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    rows += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    start = time.process_time()
    message = refused("\n".join(rows))
    assert time.process_time() - start < 1
    assert "anchors and aliases are not allowed" in message
    assert "aliases" in refused("a: &x 1\n<<: *x\n")


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "[" * 40 + "]" * 40, "{a: " * 3000, "- " * 3000, "? " * 3000])
def test_deep_nesting_is_refused(text: str) -> None:
    start = time.process_time()
    refused(text)
    assert time.process_time() - start < 2


def test_many_values_are_refused() -> None:
    assert "more than 5000 values" in refused("a: [" + "1, " * 6000 + "]")


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/object/new:os.system", "!custom"],
)
def test_tags_run_nothing(tag: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    message = refused(f"name: {tag} ['touch {canary}']")
    assert "tag" in message
    assert not canary.exists()


@pytest.mark.parametrize(
    "tag", ["!!binary aGk=", "!!set {a}", "!!timestamp 2020-01-01", "!!int x", "!!float y", "!!bool yes"]
)
def test_other_tags_are_refused(tag: str) -> None:
    refused(f"name: {tag}")


def test_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    cases = {
        "large": b"a: 1\n" * 20_000,
        "binary": bytes(range(256)),
        "null": b"a: \0",
        "tabs": b"train:\n\tlr: 1\n",
        "empty": b"",
        "list": b"- a\n- b\n",
        "value": b"42",
        "comment": b"# nothing\n",
        "two": b"a: 1\n---\nb: 2\n",
        "unclosed": b"a: [1, 2",
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UsageError) as error:
            read_yaml(path)
        assert str(error.value).startswith(f"{path}: "), name
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="no such recipe file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="no such recipe file"):
        read_yaml(tmp_path)


@pytest.mark.parametrize("text", ["no", "yes", "on", "off", "NO", "010", "1:30", "1_000", "0x10", "0o7", "2020-01-01"])
def test_surprises_of_yaml_are_plain_text(text: str) -> None:
    assert read(f"name: {text}").name == text
    assert "train.augment" in refused(f"train: {{augment: {text}}}")
    assert "train.epochs" in refused(f"train: {{epochs: {text}}}")


@pytest.mark.parametrize("text", ["'true'", "1", "'1'", "~"])
def test_schema_decides_what_a_bool_is(text: str) -> None:
    assert "train.augment" in refused(f"train: {{augment: {text}}}")


@pytest.mark.parametrize("text", ["-1", "0", "1e9", ".nan", ".inf", "-.inf", "2", "1e400", "9" * 400])
def test_numbers_out_of_range_are_refused(text: str) -> None:
    assert "train.lr" in refused(f"train: {{lr: {text}}}")


@pytest.mark.parametrize("text", [".nan", ".inf", "1e400"])
def test_numbers_that_are_not_finite_are_refused_without_a_range(text: str) -> None:
    assert "rate" in refused(f"rate: {text}")


def test_digits_beyond_pythons_limit_are_refused() -> None:
    refused(f"train: {{epochs: {'9' * 5000}}}")


def test_all_mistakes_come_at_once() -> None:
    message = refused("nam: a\nsizes: [1, b]\ntrain: {lr: -1, epochs: many}\n")
    for part in ("nam", "sizes.1", "train.lr", "train.epochs"):
        assert part in message


def test_unicode_and_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "-r ü.yaml"
    path.write_text("name: Größe\n", encoding="utf-8")
    assert build(Outer, read_yaml(path)).name == "Größe"
    message = refused('"a\\x1b[2J": 1')
    assert "\x1b" not in message
    with pytest.raises(UsageError) as error:
        read_yaml(tmp_path / "a\x1b\nb")
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab:{}[]-&*!?|>'\"%@#,\n\t 01.e\x00\x85\ufeff~", max_size=60))
def test_no_text_ends_in_another_error(text: str) -> None:
    try:
        read(text)
    except UsageError as error:
        assert "\n" not in str(error)


def test_written_recipe_reads_back() -> None:
    value = Outer(name="no", sizes=(3,), rate=1e-5, train=Inner(lr=1e-3))
    assert build(Outer, parse_yaml(to_yaml(value), "x")) == value
    assert to_tree(value)["train"] == {"lr": 0.001, "epochs": 2, "augment": True}


def test_override_sets_values_by_their_dotted_key() -> None:
    tree = parse_yaml("train:\n  lr: 0.5\n", "r.yaml")
    changed = build(Outer, override(tree, ["train.lr=1e-3", "name=a=b", "sizes=[7]", "train.augment=false", "rate="]))
    assert changed == Outer(name="a=b", sizes=(7,), train=Inner(lr=1e-3, augment=False))
    assert tree.values == {"train": {"lr": 0.5}}


def test_merge_sets_values_by_their_dotted_key() -> None:
    tree = parse_yaml("train: {lr: 0.5, epochs: many}\nsizes: [1, b]\n", "r.yaml")
    changed = merge(tree, {"train.epochs": 3, "sizes": [7], "name": "no"})
    assert build(Outer, changed) == Outer(name="no", sizes=(7,), train=Inner(lr=0.5, epochs=3))
    assert changed.lines == {("train",): 1, ("train", "lr"): 1}
    assert tree.values["sizes"] == [1, "b"]
    with pytest.raises(UsageError, match=r"train\.lr\.x: lr is a value and has no keys"):
        merge(tree, {"train.lr.x": 1})


@pytest.mark.parametrize(
    "text", ["train.lr", "=1", ".lr=1", "train.=1", "train..lr=1", "train.lr.x=1", "a=[1", "a=&x 1"]
)
def test_override_refuses_what_it_cannot_do(text: str) -> None:
    with pytest.raises(UsageError, match="--set") as error:
        override(parse_yaml("train:\n  lr: 0.5\n", "r.yaml"), [text])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tag", ["!!int", "!!float"])
def test_number_without_digits_is_one_line(tag: str) -> None:
    assert "not a valid value" in refused(f"train: {{epochs: {tag} ''}}")
