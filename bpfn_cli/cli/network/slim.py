# SPDX-License-Identifier: MIT
"""`bpfn slim`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from bpfn_cli import choices
from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.cli import options
from bpfn_cli.cli.console import echo, finish, print_json, say
from bpfn_cli.cli.network.prune import BUDGETS, PruneFlags, distill_command, print_pruned, pruned

if TYPE_CHECKING:
    from bpfn_cli.models import BiPointFlowNet, Checkpoint, Variant


PARTS = ("separable_encoder", "separable_estimators")
SIZES = ("variant", "width", "c_mid", "bn", "separable", *PARTS, "neighbors", "bottleneck")
CHANGES = (*SIZES, "teacher", "points")
PRUNING = ("importance", "keep_within")
WITH_PRUNING = ("data", "scenes", "recover")  # only pruning uses them


@dataclass(frozen=True, kw_only=True)
class SlimFlags(PruneFlags):
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
        str | None, Option(help="Encoder levels (1 to 4) with separable PointConvs.", metavar="L,...")
    ] = None
    separable_estimators: Annotated[
        str | None, Option(help="Levels (0 to 3) where the estimators' are separable.", metavar="L,...")
    ] = None
    neighbors: Annotated[
        str | None, Option(help="Numbers of neighbors of encoder, embedding and estimator.", metavar="PART=K,...")
    ] = None
    bottleneck: Annotated[int | None, Option(help="Factor by which 1x1 encoder blocks narrow.", metavar="N")] = None
    checkpoint: Annotated[
        Path | None, options.weights("--checkpoint", help="Trained network to copy, for example to a .pth file.")
    ] = None
    store: Annotated[
        choices.Storage, Option(help="Bits of the weights in the file; int8 has a scale for each channel.")
    ] = "float32"
    force: options.Force = False
    json: options.Json = False

    def sizes(self, teacher: Variant | None) -> Variant:
        """The chosen sizes with the changes that the flags make. teacher: what is changed, if no variant is named."""
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
        if self.variant is None and teacher is not None and changed:
            chosen = teacher
        else:
            chosen = find_variant(self.variant or ("baseline" if changed else "weightnet48"))
        if parts:
            before = chosen.separable if self.separable is None else Separable.read(self.separable)
            changes["separable"] = Separable.read({**vars(before), **parts})
        name = CUSTOM if self.out is None else file_name(self.out)
        return slim(chosen, CUSTOM if name in VARIANTS else name, **changes) if changed else chosen

    def check(self) -> None:
        """Raises: UsageError: another suffix; flags that contradict each other."""
        from bpfn_cli.errors import UsageError
        from bpfn_cli.models.checkpoint import PUBLISHED_SUFFIX, SUFFIX

        if self.out is not None and self.out.suffix not in (SUFFIX, PUBLISHED_SUFFIX):
            raise UsageError(
                f"--out {self.out}: use the suffix {SUFFIX}, or {PUBLISHED_SUFFIX} for the published names"
            )
        given = [
            flag_of(name) for name in (*CHANGES, *PRUNING, *WITH_PRUNING, *BUDGETS) if getattr(self, name) is not None
        ]
        if self.checkpoint is not None and given:
            raise UsageError(f"{given[0]}: --checkpoint copies a network as it is; to slice it, use --teacher instead")
        budgets, sizes = (
            [flag_of(name) for name in names if getattr(self, name) is not None] for names in (BUDGETS, SIZES)
        )
        kept = ["--keep-within"] if self.keep_within is not None else []
        if len(budgets) > 1 or (self.fits and sizes):
            raise UsageError(f"{' and '.join((*budgets, *kept, *sizes)[:2])}: use only one of them")
        if self.fits and self.out is not None and self.out.suffix == PUBLISHED_SUFFIX:
            problem = f"--out {self.out}: a {PUBLISHED_SUFFIX} file cannot hold all sizes that a budget may give"
            raise UsageError(f"{problem}; use the suffix {SUFFIX}")
        if self.prunes and self.teacher is None:
            raise UsageError(f"{(*budgets, *kept, '--importance')[0]}: add --teacher, the network to prune")
        if self.store != "float32" and self.out is not None and self.out.suffix == PUBLISHED_SUFFIX:
            raise UsageError(f"--store {self.store}: a {PUBLISHED_SUFFIX} file is float32; use the suffix {SUFFIX}")
        unused = [flag_of(name) for name in WITH_PRUNING if getattr(self, name) is not None]
        if unused and not self.prunes:
            raise UsageError(f"{unused[0]}: only for pruning; add a budget such as --target-macs 5G, or --importance")


@options.takes(SlimFlags)
def slim(flags: SlimFlags) -> None:
    """Write a small network, or copy one to another format.

    Without --teacher, its weights are random; with it, they are sliced from the teacher. With a budget, channels of
    --teacher are ranked on training scenes, the sensitivity to each size is measured, and sizes are chosen that
    meet the budget. A short training on the teacher's flow follows.
    A .pth file is a state dict with the parameter names of the published network.

    \b
    Examples:
      $ bpfn slim --variant weightnet48                         # random weights
      $ bpfn slim --teacher teacher.pth --c-mid 4,4,4,8,8       # slice a teacher
      $ bpfn slim --width 0.75 --out student.safetensors        # custom sizes
      $ bpfn slim --neighbors encoder=8,embedding=16            # fewer neighbors
      $ bpfn slim --teacher baseline --target-macs 5G           # prune it to 5 G MACs
      $ bpfn slim --teacher baseline --target-latency 60ms      # as measured on this machine
      $ bpfn slim --teacher baseline --keep-within 10%          # as small as possible at 10 % more error
      $ bpfn slim --teacher baseline --variant weightnet4 --importance taylor   # these sizes, the best channels
      $ bpfn slim --checkpoint s.safetensors --store int8 --out small.safetensors   # a quarter of the size
      $ bpfn slim --checkpoint s.safetensors --out s.pth        # the same network for the published code
    """
    from bpfn_cli.files import claim_output, made_folder
    from bpfn_cli.history import PRUNED
    from bpfn_cli.models import read_checkpoint, save_checkpoint, save_published
    from bpfn_cli.models.checkpoint import PUBLISHED_SUFFIX
    from bpfn_cli.models.slicing import check_slice
    from bpfn_cli.profiling.storage import storage_error

    flags.check()
    teacher, checkpoint = flags.teacher, flags.checkpoint
    read = read_checkpoint(original) if (original := checkpoint or teacher) else None
    sizes = read.variant if read and checkpoint else None if flags.fits else flags.sizes(read.variant if read else None)
    if read and teacher and sizes is not None:
        check_slice(sizes, read.variant)
    path = flags.out or Path(f"{PRUNED if sizes is None else sizes.name}.safetensors")
    with made_folder(path.parent):
        claim_output(path, force=flags.force, inputs=[teacher, checkpoint])
        model, report = _made(flags, sizes, read)
        if flags.store != "float32":
            report["stored"] = {"as": flags.store, **storage_error(model, flags.store)}
            _add_stored(report, model, flags)
        if path.suffix == PUBLISHED_SUFFIX:
            save_published(path, model)
        else:
            given = {"teacher": teacher, "checkpoint": checkpoint}
            sources = {key: str(source) if source else None for key, source in given.items()}
            save_checkpoint(path, model, flags.store, made_by="slim", seed=flags.seed, **sources, **report)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if flags.json:
        print_json({"out": str(path), "variant": model.variant.name, "parameters": parameters, **report})
    elif tensors := report.get("tensors"):
        echo(", ".join(f"{count} tensors {kind}" for kind, count in tensors.items()))
    elif read and flags.prunes:
        print_pruned(model, read.variant, report, flags.pair_points)
    say(f"{model.variant.name}: {parameters:,} parameters, {path.stat().st_size / 1e6:.1f} MB")
    if "stored" in report:
        mean, largest = (f"{report['stored'][key]:.2g} m" for key in ("mean_m", "largest_m"))
        say(f"{flags.store}: flows on a rendered scene change by {mean} on average, {largest} at most")
    if teacher and flags.prunes:
        finish(path, *distill_command(path, teacher, flags.data))
    else:
        finish(path, "bpfn", "profile", "--checkpoint", path)


def _made(flags: SlimFlags, sizes: Variant | None, read: Checkpoint | None) -> tuple[BiPointFlowNet, dict[str, Any]]:
    """A network of these sizes or within the budget, and what is known about it. read: the teacher or the original."""
    import torch

    from bpfn_cli.files import sha256_of
    from bpfn_cli.history import KEY, plain_steps
    from bpfn_cli.models import build_from, build_model, initialize_from
    from bpfn_cli.models.fake_quantization import RANGES
    from bpfn_cli.shipped import history_of

    torch.manual_seed(flags.seed)
    source = build_from(read) if read else None
    if read and source and (given := flags.checkpoint or flags.teacher):
        sha256 = sha256_of(given)
        steps = history_of(read.metadata, sha256)
        if flags.checkpoint is not None:
            kept = {RANGES: read.metadata[RANGES]} if RANGES in read.metadata else {}  # learned for int8
            return source, kept | ({KEY: plain_steps(steps)} if steps else {})
        if flags.prunes:
            return pruned(flags, source, sizes, steps, sha256)
    assert sizes is not None
    model = build_model(sizes, flags.points or (source.num_points if source else PUBLISHED_POINTS))
    if source is None:
        return model, {}
    return model, {"tensors": {kind: len(names) for kind, names in vars(initialize_from(model, source)).items()}}


def _add_stored(report: dict[str, Any], model: BiPointFlowNet, flags: SlimFlags) -> None:
    """Add the step of fewer bits to the history; a network without a history has itself as the first step."""
    from bpfn_cli.history import KEY, ORIGINAL, plain_steps, read_history
    from bpfn_cli.models.history import step_of

    steps = read_history(report) or (step_of(ORIGINAL, model, flags.points),)
    moved_m = report["stored"]["mean_m"]
    report[KEY] = plain_steps(
        (*steps, step_of(f"stored {flags.store}", model, flags.points, flags.store, moved_m=moved_m))
    )


def flag_of(name: str) -> str:
    """Of a field of `SlimFlags`."""
    return f"--{name.replace('_', '-')}"


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
