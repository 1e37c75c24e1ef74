# SPDX-License-Identifier: MIT
"""`bpfn profile`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from bpfn_cli.choices import PUBLISHED_POINTS
from bpfn_cli.cli import options
from bpfn_cli.cli.console import ConsoleProgress, console, echo, print_json, say_next
from bpfn_cli.cli.network.tables import chosen_variants, measure, print_table

if TYPE_CHECKING:
    from bpfn_cli.models import Variant
    from bpfn_cli.profiling import Latency, Profile, TensorSize
    from bpfn_cli.profiling.profile import LevelProfile


@dataclass(frozen=True, kw_only=True)
class ProfileFlags:
    """What `bpfn profile` takes."""

    variant: options.VariantName = None
    all_variants: Annotated[bool, options.switch("--all", "All named variants.")] = False
    checkpoint: options.CheckpointFile = None
    points: options.ProfiledPoints = None
    latency: Annotated[bool, options.switch("--latency", "Also the time of one pass, measured as in `bpfn bench`.")] = (
        False
    )
    tensors: Annotated[bool, options.switch("--tensors", "Also elements, name and shape of every tensor.")] = False
    json: options.Json = False


@options.takes(ProfileFlags)
def profile(flags: ProfileFlags) -> None:
    """Print the parameters, MACs and file size of networks.

    MACs are multiply-accumulates. For a checkpoint that was pruned, distilled or stored in fewer bits, the steps that
    made it are printed too, with what each cost.

    \b
    Examples:
      $ bpfn profile --variant weightnet48              # one network, with each level
      $ bpfn profile --all --latency                    # all variants, and the time of a pass
      $ bpfn profile --checkpoint student.pth           # the network of a checkpoint
      $ bpfn profile --variant half --tensors           # with the shape of every tensor
    """
    from bpfn_cli.files import sha256_of
    from bpfn_cli.history import KEY, plain_steps
    from bpfn_cli.models import read_checkpoint
    from bpfn_cli.profiling import list_tensors, profile_model, tensor_totals
    from bpfn_cli.reporting.history import history_table
    from bpfn_cli.reporting.terminal import print_table as print_report_table
    from bpfn_cli.shipped import given_name, history_of

    names, points = [] if flags.variant is None else [flags.variant], flags.points or PUBLISHED_POINTS
    checkpoint = flags.checkpoint
    chosen = chosen_variants(names, flags.all_variants, checkpoint, default=["weightnet48"])
    file_bytes = None if checkpoint is None else checkpoint.stat().st_size
    profiles = []
    with ConsoleProgress().bar("counting") as bar:
        for done, one in enumerate(chosen, start=1):
            profiles.append(profile_model(one, points, file_bytes=file_bytes))
            bar(done, len(chosen), one.name)
    measured = _measure(chosen, points) if flags.latency else []
    tensors = [list_tensors(one) for one in chosen] if flags.tensors else []
    steps = () if checkpoint is None else history_of(read_checkpoint(checkpoint).metadata, sha256_of(checkpoint))
    if flags.json:
        found = [asdict(one) | ({KEY: plain_steps(steps)} if steps else {}) for one in profiles]
        for fields, its_latency in zip(found, measured, strict=False):
            fields["latency"] = asdict(its_latency)
        for fields, its_tensors in zip(found, tensors, strict=False):
            fields |= {"tensors": [asdict(one) for one in its_tensors], "tensor_elements": tensor_totals(its_tensors)}
        print_json(found if flags.all_variants else found[0])
        return
    _print_sizes(profiles)
    if measured:
        _print_latencies(measured)
    if len(profiles) == 1:
        _print_levels(profiles[0])
    if len(steps) > 1 and checkpoint is not None:
        print_report_table(history_table(checkpoint.name, steps), console())
    for one, its_tensors in zip(chosen, tensors, strict=False):
        _print_tensors(one.name, its_tensors)
    if checkpoint is None:
        say_next("bpfn", "distill", "--loss", "bihint", *(word for name in names for word in ("--variant", name)))
    else:
        say_next("bpfn", "eval", "--checkpoint", given_name(checkpoint))


def _measure(variants: list[Variant], points: int) -> list[Latency]:
    from bpfn_cli.device import keep_freed_memory, resolve_device
    from bpfn_cli.profiling import Case

    cases = [Case(variant, points, device=str(resolve_device("auto"))) for variant in variants]
    return measure(cases, plain=False, memory=False, keep_freed=keep_freed_memory())


def _print_sizes(profiles: list[Profile]) -> None:
    headings = ("Variant", "Parameters", "Unused", "MACs, modules [G]", "MACs, operators [G]", "File [MB]")
    rows = []
    for one in profiles:
        counts = f"{one.parameters:,}", f"{one.unused_parameters:,}", *_giga(one, digits=2)
        rows.append((one.variant, *counts, one.checkpoint_bytes / 1e6))
    print_table(f"Networks, one pair of {profiles[0].points} points per cloud", headings, rows)
    console().print(
        "MACs, modules: convolutions, linear maps, their biases and activation modules, as in the published tables.\n"
        "MACs, operators: fvcore's count, with matrix products outside modules. The two are not comparable."
    )


def _giga(one: Profile | LevelProfile, digits: int) -> list[str]:
    return ["-" if macs is None else f"{macs / 1e9:.{digits}f}" for macs in (one.module_macs, one.operator_macs)]


def _print_latencies(measured: list[Latency]) -> None:
    from bpfn_cli.profiling import describe_machine

    rows = [(one.variant, one.fast.median_ms, one.fast.p90_ms, f"{one.fast.pairs_per_s:.2f}") for one in measured]
    title = f"Time of one pair on {measured[0].device}, {describe_machine()['threads']} threads"
    print_table(title, ("Variant", "Median \\[ms]", "p90 \\[ms]", "Pairs/s"), rows)


def _print_levels(one: Profile) -> None:
    from bpfn_cli.models.reference import MOST_PLAIN_POINTS

    headings = ("Level", "Points", "Parameters", "MACs, modules [G]", "MACs, operators [G]")
    rows = [(each.level, f"{each.points:,}", f"{each.parameters:,}", *_giga(each, digits=3)) for each in one.levels]
    print_table(f"{one.variant} by level", headings, rows)
    names = ", ".join(f"{name.split('::')[-1]} {count}x" for name, count in one.uncounted.items())
    without = f"so many points take too long; use {MOST_PLAIN_POINTS:,} or fewer"
    console().print(f"Not counted by fvcore: {names or without}.", soft_wrap=True)


def _print_tensors(name: str, tensors: list[TensorSize]) -> None:
    """Plain lines, for grep and awk."""
    from bpfn_cli.profiling import tensor_totals

    totals, longest = tensor_totals(tensors), max(len(one.name) for one in tensors)
    echo(f"\nTensors of {name}: elements, name, shape")
    for one in tensors:
        echo(f"{one.elements:>9,}  {one.name:<{longest}}  {list(one.shape)}")
    parts = f"{totals['parameter']:,} of parameters and {totals['buffer']:,} of buffers (statistics of batch norms)"
    echo(f"{totals['total']:>9,}  elements in {len(tensors)} tensors: {parts}")
