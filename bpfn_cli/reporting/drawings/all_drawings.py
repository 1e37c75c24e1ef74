# SPDX-License-Identifier: MIT
"""All figures of a report."""

from __future__ import annotations

from collections.abc import Mapping

from bpfn_cli.reporting.drawings.accuracy import accuracy_drawings, published_drawings
from bpfn_cli.reporting.drawings.drawing import Drawing, distinct
from bpfn_cli.reporting.drawings.learning import learning_drawings
from bpfn_cli.reporting.drawings.networks import networks_of
from bpfn_cli.reporting.drawings.study import study_drawings
from bpfn_cli.reporting.published import read_published
from bpfn_cli.runs.results import RunResults


def run_drawings(
    results: RunResults,
    *,
    published: bool = False,
    latency_ms: Mapping[str, float] | None = None,
    most_networks: int | None = None,
) -> list[Drawing]:
    """All figures that the runs allow. Args: as of `accuracy_drawings` and `learning_drawings`."""
    found = [*accuracy_drawings(results, latency_ms), *(published_drawings(read_published()) if published else ())]
    # Its curves are among the others.
    found += [one for one in study_drawings(results) if one.subject == "study"]
    found += [*learning_drawings(networks_of(results.runs), most_networks)]
    return list(distinct(found))
