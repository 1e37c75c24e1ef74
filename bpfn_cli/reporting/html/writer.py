# SPDX-License-Identifier: MIT
"""Writes the page and those of its scenes; when it is written again, what has not changed is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bpfn_cli.files import make_folder, write_atomic
from bpfn_cli.progress import OnProgress
from bpfn_cli.reporting.html.contents import Options, page_of
from bpfn_cli.reporting.html.page import Pictures, html_of
from bpfn_cli.reporting.html.scenes import SceneSet, page_files, scene_sets, write_scenes
from bpfn_cli.reporting.tables import Report
from bpfn_cli.runs.results import RunResults

INDEX = "index.html"


@dataclass
class PageWriter:
    """Writes `index.html` and `scenes/*.html` to `folder`.

    Args: published: with the published results in the figures. latency_ms: of a pass, by variant. scenes: the number
        of worst and of best scenes.
    """

    folder: Path
    published: bool = False
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    scenes: int = 3
    _pictures: Pictures = field(default_factory=Pictures)
    _written: dict[SceneSet, SceneSet] = field(default_factory=dict)

    @property
    def index(self) -> Path:
        return self.folder / INDEX

    def files(self, results: RunResults) -> list[str]:
        """The files that `write` writes, relative to the folder."""
        return [INDEX, *page_files(list(scene_sets(results, self.scenes)))]

    def write(
        self, results: RunResults, report: Report, refresh: float | None = None, progress: OnProgress = None
    ) -> None:
        """Write all files.

        Args: refresh: seconds after which the page reloads itself. progress: as of `page_of`.
        Raises: DiskError.
        """
        make_folder(self.folder)
        sets = [self._with_pages(one) for one in scene_sets(results, self.scenes)]
        options = Options(self.published, self.latency_ms)
        page = page_of(results, report, sets, options, self._pictures, progress)
        self._pictures.forget_unused()
        write_atomic(self.index, html_of(page, None if refresh is None else round(refresh)).encode())

    def _with_pages(self, one: SceneSet) -> SceneSet:
        if one not in self._written:
            self._written[one] = write_scenes(one, self.folder)
        return self._written[one]
