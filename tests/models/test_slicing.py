# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from golden_models import filled_model, random_pair

from bpfn_cli.errors import UsageError
from bpfn_cli.models import (
    BASELINE,
    VARIANTS,
    BiPointFlowNet,
    Separable,
    Variant,
    build_model,
    initialize_from,
    slim,
    variant_named,
)
from bpfn_cli.models.slicing import input_parts


def parameters(variant: str | Variant, bn: bool | None = None) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(variant, bn=bn).parameters())


@pytest.mark.parametrize(
    ("variant", "bn", "expected"),
    [
        ("baseline", None, 7_958_604),
        ("baseline", True, 7_968_716),
        ("weightnet8", None, 4_475_436),
        ("weightnet4", None, 2_733_852),
        ("weightnet48", None, 3_857_356),
        ("half", None, 3_720_028),
        ("declinear", None, 1_025_284),
        ("declinear34", None, 4_779_768),
    ],
)
def test_number_of_parameters(variant: str, bn: bool | None, expected: int) -> None:
    assert parameters(variant, bn) == expected


def zero_linear_beyond(model: BiPointFlowNet, small: int) -> None:
    """Make the WeightNet outputs from `small` on meaningless for every PointConv."""
    for name, parameter in model.named_parameters():
        if name.endswith(".linear.weight"):
            parameter.data.unflatten(1, (-1, 16))[:, :, small:] = 0


@pytest.mark.parametrize(("student", "small"), [("weightnet8", 8), ("weightnet4", 4)])
def test_c_mid_slice_gives_the_teachers_output_where_the_rest_is_zero(student: str, small: int) -> None:
    teacher = filled_model("baseline")
    zero_linear_beyond(teacher, small)
    model = filled_model(student, seed=7)
    report = initialize_from(model, teacher)
    assert not report.new
    assert all("weightnet" in name or name.endswith(".linear.weight") for name in report.sliced)
    clouds = random_pair()
    with torch.no_grad():
        expected, found = teacher(*clouds), model(*clouds)
    for a, b in zip(expected.flows, found.flows, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-12)


def test_c_mid_slice_strides_and_is_not_a_prefix() -> None:
    teacher, student = filled_model("baseline"), build_model("weightnet4", 1024).double()
    initialize_from(student, teacher)
    large, cut = teacher.level1.linear.weight, student.level1.linear.weight
    # Column 5 of the student is channel 1, w 1: column 17 of the teacher.
    assert torch.equal(cut[:, 5], large[:, 17])
    assert torch.equal(cut[:, 3], large[:, 3])
    assert torch.equal(cut[:, 8], large[:, 32])


def test_width_slice_cuts_each_part_of_a_concatenation() -> None:
    teacher, student = filled_model("baseline", bn=True), build_model("half", 1024).double()
    report = initialize_from(student, teacher)
    assert not report.new
    assert input_parts("cross3.cross_t11.weight", BASELINE) == [256, 64]
    assert input_parts("flow1.pointconv_list.0.linear.weight", BASELINE) == [3, 64, 64, 64]
    assert input_parts("flow3.pointconv_list.0.linear.weight", BASELINE) == [3, 256, 256]
    assert input_parts("level4.linear.weight", BASELINE) == [3, 512]
    # cross2 takes F2 (128 wide, 64 in the student) and 64 of context, which both have.
    large, cut = teacher.cross2.cross_t22.weight, student.cross2.cross_t22.weight
    assert torch.equal(cut[:, :64], large[:64, :64])
    assert torch.equal(cut[:, 64:], large[:64, 128:192])
    # flow1 takes 3 offsets, F1 (64, 32), the coarser estimate (64), the embedding (64, 32); 16 values each.
    large = teacher.flow1.pointconv_list[0].linear.weight
    cut = student.flow1.pointconv_list[0].linear.weight
    expected = torch.cat([large[:, 0:48], large[:, 48:560], large[:, 1072:2096], large[:, 2096:2608]], dim=1)
    assert torch.equal(cut, expected)
    assert torch.equal(
        student.level0.composed_module[1].running_var, teacher.level0.composed_module[1].running_var[:16]
    )


def test_width_and_c_mid_slice_of_a_separable_network_are_honest_about_what_is_fresh() -> None:
    teacher = filled_model("declinear")
    student = build_model(slim(teacher.variant, "s", c_mid=8), 1024).double()
    report = initialize_from(student, teacher)
    assert report.new
    assert all(".pointwise." in name or ".conv." in name for name in report.new)
    student = build_model(slim(teacher.variant, "s", width=0.5), 1024).double()
    assert not initialize_from(student, teacher).new
    # flow3 conv: 3 offsets, F3 256 -> 128, embedding 256 -> 128.
    large, cut = teacher.flow3.pointconv_list[0].conv.bias, student.flow3.pointconv_list[0].conv.bias
    assert torch.equal(cut, torch.cat([large[:131], large[259:387]]))


def test_separable_levels_are_chosen_for_each_part_by_hand() -> None:
    """Of C channels and 3 offsets: 16 (C + 3) inputs and a bias, or two numbers a channel and a map to 256 / 16."""
    full = [(16 * channels + 1) * 256 for channels in (259, 515)]
    separable = [2 * channels + 16 * (channels + 1) for channels in (259, 515)]
    assert (sum(full), sum(separable)) == (3_170_816, 13_964)
    assert parameters(slim(BASELINE, "s", separable=Separable(encoder=(3, 4)))) == 7_958_604 - 3_170_816 + 13_964
    model = build_model(slim(BASELINE, "s", separable=Separable(encoder=(2,), estimators=(0,))), 1024)
    separable = {name.removesuffix(".pointwise.weight") for name in model.state_dict() if "pointwise.w" in name}
    assert separable == {"level2", "flow0.pointconv_list.0", "flow0.pointconv_list.1"}


def test_residual_blocks_by_hand() -> None:
    """Three maps with biases, channels -> hidden -> hidden -> channels, and two numbers a channel, for one map."""
    sizes = [(32, 16), (64, 32), (128, 64), (256, 64)]
    plain = [c * c + c for c, _ in sizes]
    residual = [(c * h + h) + (h * h + h) + (h * c + c) + 2 * c for c, h in sizes]
    assert (sum(plain), sum(residual)) == (87_520, 65_536)
    separable = slim(BASELINE, "s", separable=Separable(encoder=(3, 4)))
    assert parameters("declinear34") == parameters(separable) - 87_520 + 65_536 == 4_779_768


def test_residual_block_adds_three_maps_and_a_depthwise_one_to_its_input() -> None:
    block = filled_model("declinear34").level1_0
    state = {name.replace(".composed_module.0", ""): tensor for name, tensor in block.state_dict().items()}
    x = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inner = x
    for name in ("narrow", "middle", "widen"):
        inner = inner @ state[f"{name}.weight"].squeeze(2).T + state[f"{name}.bias"]
        inner = inner if name == "widen" else inner.relu()
    outer = (x * state["depthwise.weight"].flatten() + state["depthwise.bias"]).relu()
    with torch.no_grad():
        torch.testing.assert_close(block(x), (x + inner + outer).relu(), rtol=0, atol=1e-12)
        order = torch.tensor([3, 0, 4, 1, 2])
        torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=0, atol=1e-12)


def test_residual_blocks_are_sliced_and_are_fresh_without_a_teacher_of_the_kind() -> None:
    teacher = filled_model("declinear34")
    student = build_model(slim(teacher.variant, "s", width=0.5), 1024).double()
    assert student.variant.residual == (8, 16, 32, 32)
    assert not initialize_from(student, teacher).new
    large, cut = teacher.level2_0, student.level2_0
    assert torch.equal(cut.middle.linear.weight, large.middle.linear.weight[:32, :32])
    assert torch.equal(cut.depthwise.linear.weight, large.depthwise.linear.weight[:64])
    for plain in ("baseline", "half_bottleneck"):
        sizes = slim(VARIANTS[plain], "s", residual=(1, 2, 3, 4))
        report = initialize_from(build_model(sizes, 1024).double(), filled_model(plain))
        blocks = ("level0_1.", "level1_0.", "level2_0.", "level3_0.")
        assert report.new and all(name.startswith(blocks) for name in report.new)


def test_linear_of_a_separable_student_is_fresh() -> None:
    student = build_model("declinear", 1024).double()
    before = student.level1.pointwise.weight.clone()
    report = initialize_from(student, filled_model("baseline"))
    assert "level1.pointwise.weight" in report.new
    assert torch.equal(student.level1.pointwise.weight, before)


def test_equal_sizes_are_copied_whole_and_detached() -> None:
    teacher, student = filled_model("weightnet4"), build_model("weightnet4", 1024).double()
    report = initialize_from(student, teacher)
    assert not report.sliced
    assert not report.new
    teacher.level0.composed_module[0].weight.data.zero_()
    assert student.level0.composed_module[0].weight.abs().sum() > 0


@pytest.mark.parametrize("variant", ["baseline", "weightnet8", "weightnet48"])
def test_wider_student_is_refused(variant: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^{variant}: c_mid \d+ at level \d cannot be cut from the 4 of weightnet4; use"
    ):
        initialize_from(build_model(variant, 1024), build_model("weightnet4", 1024))


def test_batch_norms_of_a_teacher_are_not_dropped() -> None:
    teacher = build_model("baseline", 1024, bn=True)
    with pytest.raises(UsageError, match="weightnet4 has none of the batch norms that baseline was trained with; add"):
        initialize_from(build_model("weightnet4", 1024), teacher)
    assert not initialize_from(build_model("weightnet4", 1024, bn=True), teacher).new


def test_sizes_no_network_has_are_refused() -> None:
    for bad in ({"width": 0.0}, {"width": 5.0}, {"c_mid": 0}, {"c_mid": (4, 4)}, {"bottleneck": -1}):
        with pytest.raises(UsageError):
            slim(BASELINE, "bad", **bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="separable"):
        slim(BASELINE, "bad", separable=True, c_mid=7)
    with pytest.raises(UsageError, match=r"residual \[16, 32\]: use four widths"):
        slim(BASELINE, "bad", residual=(16, 32))
    with pytest.raises(UsageError, match=r"levels \[\] of the encoder, \[4\] of the estimators"):
        slim(BASELINE, "bad", separable=Separable(estimators=(4,)))
    with pytest.raises(UsageError, match="neighbors encoder 65: use 1 to 64"):
        slim(BASELINE, "bad", neighbors={"encoder": 65})
    with pytest.raises(UsageError, match="did you mean baseline"):
        variant_named("basline")
    with pytest.raises(UsageError, match="at least 1024"):
        build_model("baseline", 1023)
