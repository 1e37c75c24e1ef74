# SPDX-License-Identifier: MIT
"""`bpfn weights`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bpfn_cli.cli import options
from bpfn_cli.cli.console import echo, print_json, say
from bpfn_cli.cli.network.tables import print_table

if TYPE_CHECKING:
    from bpfn_cli.shipped import ShippedNetwork

KITTI, DRIVING = "kitti", "driving"  # the results that have a column


def weights(
    name: Annotated[str | None, typer.Argument(help="Network to describe.", metavar="[NAME]")] = None,
    json: options.Json = False,
) -> None:
    """List the trained networks that come with bpfn, or show the card of one.

    Their names can be given wherever a checkpoint can: `bpfn predict a.ply b.ply --checkpoint baseline`.

    \b
    Examples:
      $ bpfn weights                # size and accuracy of each network
      $ bpfn weights baseline       # its data, recipes, results and limits
    """
    from bpfn_cli.shipped import shipped_network, shipped_networks

    networks = [shipped_network(name)] if name else list(shipped_networks().values())
    if json:
        found = [_fields(one) for one in networks]
        print_json(found[0] if name else found)
    elif name:
        _print_card(networks[0])
    else:
        _print_list(networks)


def _print_list(networks: list[ShippedNetwork]) -> None:
    headings = ("Name", "File \\[MB]", "Parameters", "EPE3D, KITTI \\[m]", "Acc3DR, KITTI", "EPE3D, driving \\[m]")
    rows = []
    for one in networks:
        kitti, driving = (one.card.results.get(name) for name in (KITTI, DRIVING))
        metrics = (
            kitti and f"{kitti.epe3d:.4f}",
            kitti and f"{kitti.acc3d_relax:.3f}",
            driving and f"{driving.epe3d:.4f}",
        )
        rows.append((one.name, one.card.bytes / 1e6, f"{one.card.parameters:,}", *metrics))
    print_table("Networks that come with bpfn", headings, rows)
    if networks:
        for result in networks[0].card.results.values():
            say(f"{result.scenes}: {result.command}")
        say(f"next: bpfn weights {networks[0].name} (how it was made), bpfn predict PC1 PC2")


def _print_card(one: ShippedNetwork) -> None:
    import yaml

    echo(yaml.safe_dump(_fields(one), sort_keys=False, width=120, allow_unicode=True).rstrip())
    say(f"next: bpfn predict PC1 PC2 --checkpoint {one.name}")


def _fields(one: ShippedNetwork) -> dict[str, Any]:
    from bpfn_cli.history import KEY, plain_steps

    return {"name": one.name, "path": str(one.path), **asdict(one.card), KEY: plain_steps(one.history)}
