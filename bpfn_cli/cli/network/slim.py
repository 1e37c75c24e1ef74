# SPDX-License-Identifier: MIT
"""`bpfn slim`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from bpfn_cli.cli import options
from bpfn_cli.cli.console import echo, finish, print_json, say

if TYPE_CHECKING:
    from bpfn_cli.models import BiPointFlowNet, Variant
    from bpfn_cli.models.slim import SliceReport


PARTS = ("separable_encoder", "separable_estimators")
CHANGES = ("variant", "width", "c_mid", "bn", "separable", *PARTS, "neighbors", "bottleneck", "teacher", "points")


@dataclass(frozen=True, kw_only=True)
class SlimFlags:
    """What `bpfn slim` takes."""

    variant: options.VariantName = None
    width: Annotated[float | None, Option(help="Factor on the channel widths.", metavar="X")] = None
    c_mid: Annotated[
        str | None, Option(help="WeightNet outputs: one number, or five (levels 0 to 4).", metavar="N,...")
    ] = None
    bn: Annotated[bool | None, options.switch("--bn/--no-bn", "Batch norm.")] = None
    separable: Annotated[bool | None, options.switch("--separable/--no-separable", "Depthwise and pointwise maps.")] = (
        None
    )
    separable_encoder: Annotated[
        str | None, Option(help="Levels (1 to 4) where the encoder's are separable.", metavar="L,...")
    ] = None
    separable_estimators: Annotated[
        str | None, Option(help="Levels (0 to 3) where the estimators' are separable.", metavar="L,...")
    ] = None
    neighbors: Annotated[
        str | None, Option(help="Numbers of neighbors of encoder, embedding and estimator.", metavar="PART=K,...")
    ] = None
    bottleneck: Annotated[int | None, Option(help="Factor by which 1x1 encoder blocks narrow.", metavar="N")] = None
    teacher: Annotated[
        Path | None, options.weights("--teacher", help="Weights to slice; without it they are fresh.")
    ] = None
    checkpoint: Annotated[
        Path | None, options.weights("--checkpoint", help="Trained network to copy, for example to a .pth file.")
    ] = None
    out: options.Out = None
    points: options.Points = None
    seed: options.Seed = 0
    force: options.Force = False
    json: options.Json = False

    def sizes(self) -> Variant:
        """The chosen sizes with the changes that the flags make."""
        from bpfn_cli.models import Separable, find_variant, slim
        from bpfn_cli.models.variants import CUSTOM, VARIANTS, file_name

        changes = {name: getattr(self, name) for name in ("width", "bn", "separable", "bottleneck")}
        c_mid = _numbers("--c-mid", self.c_mid)
        changes["neighbors"] = _neighbors(self.neighbors)
        changes["c_mid"] = c_mid[0] if c_mid is not None and len(c_mid) == 1 else c_mid
        given = {
            "encoder": _numbers("--separable-encoder", self.separable_encoder),
            "estimators": _numbers("--separable-estimators", self.separable_estimators),
        }
        parts = {part: levels for part, levels in given.items() if levels is not None}
        changed = bool(parts) or any(value is not None for value in changes.values())
        chosen = find_variant(self.variant if self.variant is not None else "baseline" if changed else "weightnet48")
        if parts:
            before = chosen.separable if self.separable is None else Separable.read(self.separable)
            changes["separable"] = Separable.read({**vars(before), **parts})
        name = CUSTOM if self.out is None else file_name(self.out)
        return slim(chosen, CUSTOM if name in VARIANTS else name, **changes) if changed else chosen

    def check(self) -> None:
        """Raises: UsageError: another suffix; flags that would change a network that is copied."""
        from bpfn_cli.errors import UsageError
        from bpfn_cli.models.checkpoint import PUBLISHED_SUFFIX, SUFFIX

        if self.out is not None and self.out.suffix not in (SUFFIX, PUBLISHED_SUFFIX):
            raise UsageError(
                f"--out {self.out}: use the suffix {SUFFIX}, or {PUBLISHED_SUFFIX} for the published names"
            )
        given = [name for name in CHANGES if getattr(self, name) is not None]
        if self.checkpoint is not None and given:
            flag = f"--{given[0].replace('_', '-')}"
            raise UsageError(f"{flag}: --checkpoint copies a network as it is; to slice it, use --teacher instead")


@options.takes(SlimFlags)
def slim(flags: SlimFlags) -> None:
    """Write a small network, fresh or sliced from a large one, or copy a network to another format.

    A .pth file is a state dict with the parameter names of the published network.

    \b
    Examples:
      $ bpfn slim --variant weightnet48                         # fresh weights
      $ bpfn slim --teacher teacher.pth --c-mid 4,4,4,8,8       # slice a teacher
      $ bpfn slim --width 0.75 --out student.safetensors        # custom sizes
      $ bpfn slim --neighbors encoder=8,embedding=16            # fewer neighbors
      $ bpfn slim --checkpoint s.safetensors --out s.pth        # the same network for the published code
    """
    from bpfn_cli.files import claim_output
    from bpfn_cli.models import read_checkpoint, save_checkpoint, save_published
    from bpfn_cli.models.checkpoint import PUBLISHED_SUFFIX

    flags.check()
    teacher, checkpoint = flags.teacher, flags.checkpoint
    chosen = read_checkpoint(checkpoint).variant if checkpoint else flags.sizes()
    path = flags.out or Path(f"{chosen.name}.safetensors")
    claim_output(path, force=flags.force, inputs=[teacher, checkpoint])
    model, report = _made(flags, chosen)
    if path.suffix == PUBLISHED_SUFFIX:
        save_published(path, model)
    else:
        sources = {"teacher": str(teacher) if teacher else None, "checkpoint": str(checkpoint) if checkpoint else None}
        save_checkpoint(path, model, made_by="slim", seed=flags.seed or 0, **sources)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tensors = None if report is None else {kind: len(names) for kind, names in vars(report).items()}
    if flags.json:
        print_json({"out": str(path), "variant": chosen.name, "parameters": parameters, "tensors": tensors})
    elif tensors:
        echo(", ".join(f"{count} tensors {kind}" for kind, count in tensors.items()))
    say(f"{chosen.name}: {parameters:,} parameters, {path.stat().st_size / 1e6:.1f} MB")
    finish(path, f"bpfn profile --checkpoint {path}")


def _made(flags: SlimFlags, sizes: Variant) -> tuple[BiPointFlowNet, SliceReport | None]:
    """A network of these sizes: fresh, sliced, or read."""
    import torch

    from bpfn_cli.models import build_model, initialize_from, load_checkpoint

    if flags.checkpoint is not None:
        return load_checkpoint(flags.checkpoint), None
    torch.manual_seed(flags.seed or 0)
    source = load_checkpoint(flags.teacher) if flags.teacher else None
    model = build_model(sizes, flags.points or (source.num_points if source else 8192))
    return model, initialize_from(model, source) if source else None


def _numbers(flag: str, text: str | None) -> list[int] | None:
    from bpfn_cli.errors import UsageError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text}: use whole numbers, such as 4 or 4,4,4,8,8") from None


def _neighbors(text: str | None) -> dict[str, int] | None:
    from bpfn_cli.errors import UsageError

    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(count.isascii() and count.isdigit() for _, _, count in pairs):
        raise UsageError(f"--neighbors {text}: write PART=K, such as encoder=8,embedding=16")
    return {search: int(count) for search, _, count in pairs}
