# SPDX-License-Identifier: MIT
"""`bpfn slim`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import finish, print_json, say


def slim(
    variant: options.VariantName = None,
    width: Annotated[float | None, typer.Option("--width", help="Factor on the channel widths.")] = None,
    c_mid: Annotated[
        str | None, typer.Option("--c-mid", help="WeightNet outputs: one number, or five (levels 0 to 4).")
    ] = None,
    bn: Annotated[bool | None, typer.Option("--bn/--no-bn", help="Batch norm.", metavar="")] = None,
    separable: Annotated[
        bool | None, typer.Option("--separable/--no-separable", help="Depthwise and pointwise maps.", metavar="")
    ] = None,
    bottleneck: Annotated[int | None, typer.Option("--bottleneck", help="Narrowing of 1x1 encoder blocks.")] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", readable=False, help="Weights to slice; else fresh ones.", metavar="FILE"),
    ] = None,
    out: options.Out = None,
    points: options.Points = None,
    seed: options.Seed = 0,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Write the checkpoint of a small network, fresh or sliced from a large one.

    Examples: `bpfn slim --variant weightnet48`, `bpfn slim --teacher teacher.pth --c-mid 4,4,4,8,8`,
    `bpfn slim --width 0.75 --out student.safetensors`
    """
    from bpfn_cli.errors import UsageError
    from bpfn_cli.files import claim_output

    counts = _numbers(c_mid)
    import torch

    from bpfn_cli.models import build_model, initialize_from, load_checkpoint, save_checkpoint, variant_named
    from bpfn_cli.models.variants import slim as slimmed

    changed = any(value is not None for value in (width, c_mid, bn, separable, bottleneck))
    sizes = variant_named(variant if variant is not None else "baseline" if changed else "weightnet48")
    if changed:
        sizes = slimmed(sizes, "custom", width=width, c_mid=counts, bn=bn, separable=separable, bottleneck=bottleneck)
    path = out or Path(f"{sizes.name}.safetensors")
    if path.suffix != ".safetensors":
        raise UsageError(f"--out {path}: checkpoints are written as .safetensors; use that ending")
    claim_output(path, force=force, inputs=[teacher])
    torch.manual_seed(seed or 0)
    source = load_checkpoint(teacher) if teacher else None
    model = build_model(sizes, points or (source.num_points if source else 8192))
    done = initialize_from(model, source) if source else None
    save_checkpoint(path, model, made_by="slim", seed=seed or 0, teacher=str(teacher) if teacher else None)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tensors = {"copied": len(done.copied), "sliced": len(done.sliced), "fresh": len(done.fresh)} if done else None
    if json:
        print_json({"out": str(path), "variant": sizes.name, "parameters": parameters, "tensors": tensors})
    elif tensors:
        print(", ".join(f"{count} tensors {how}" for how, count in tensors.items()))
    say(f"{sizes.name}: {parameters:,} parameters, {path.stat().st_size / 1e6:.1f} MB")
    finish(path, f"bpfn profile --checkpoint {path}")


def _numbers(text: str | None) -> int | list[int] | None:
    from bpfn_cli.errors import UsageError

    if text is None:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--c-mid {text}: give whole numbers, such as 4 or 4,4,4,8,8") from None
    return numbers[0] if len(numbers) == 1 else numbers
