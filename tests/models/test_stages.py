# SPDX-License-Identifier: MIT
"""The stages of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tiny_world import LEAST, tiny_network

from bpfn_cli.models.stages import watch_stages


def clouds() -> tuple[torch.Tensor, torch.Tensor]:
    pc1 = torch.rand(1, LEAST, 3, generator=torch.Generator().manual_seed(0)) * 10
    return pc1, pc1.flip(1) + 0.1


def test_forward_names_its_stages_and_the_geometry_inside_them() -> None:
    entered: list[str] = []
    opened: list[str] = []

    @contextmanager
    def watch(name: str) -> Iterator[None]:
        opened.append(name)
        entered.append("/".join(opened))
        yield
        assert opened.pop() == name

    model = tiny_network()
    with torch.no_grad():
        expected = model(*clouds()).flows[0]
        with watch_stages(watch):
            flow = model(*clouds()).flows[0]
        unwatched = list(entered)
        model(*clouds())
    assert torch.equal(flow, expected)
    assert entered == unwatched
    coarsest = ["geometry", "encoder", "level3", "level3/geometry"]
    finer = [name for level in (2, 1, 0) for name in (f"level{level}", f"level{level}/geometry")]
    assert entered == coarsest + finer


def test_stages_can_be_marked_in_a_trace() -> None:
    model = tiny_network()
    with torch.profiler.profile() as trace, torch.no_grad(), watch_stages(torch.profiler.record_function):
        model(*clouds())
    counts = {event.key: event.count for event in trace.key_averages()}
    assert (counts["encoder"], counts["level0"], counts["geometry"]) == (1, 1, 5)
