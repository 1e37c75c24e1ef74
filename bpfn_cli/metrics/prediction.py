# SPDX-License-Identifier: MIT
"""Prediction of many pairs: read, predicted, written and measured one after the other."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.data.files.pairs import CloudPair, PairReader
from bpfn_cli.data.files.points import write_points
from bpfn_cli.errors import BpfnError, NonFiniteError, ShapeError, printable
from bpfn_cli.metrics.scene_flow import MeanMetrics, SceneFlowMetrics, scene_flow_metrics
from bpfn_cli.models.predict import FlowPredictor
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.progress import ProgressCallback


@dataclass(frozen=True)
class FlowFigures:
    """A predicted flow in figures. points: its rows. metrics: against the true flow, if that is known."""

    points: int
    mean_flow_m: float
    median_flow_m: float
    metrics: SceneFlowMetrics | None

    @classmethod
    def of(cls, flow: np.ndarray, pc1: np.ndarray, truth: np.ndarray | None) -> "FlowFigures":
        """The figures of `flow` (N, 3), metres, at `pc1`. truth: (N, 3)."""
        lengths = np.linalg.norm(flow, axis=1)
        metrics = None if truth is None else scene_flow_metrics(flow, truth, pc1)
        return cls(len(flow), float(lengths.mean()), float(np.median(lengths)), metrics)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "metrics": None if self.metrics is None else dict(self.metrics)}


@dataclass(frozen=True)
class Predictions:
    """What `predict_pairs` did. figures: by output file. seconds: of the loop, with reading and writing."""

    figures: dict[Path, FlowFigures]
    seconds: float

    @property
    def pairs_per_s(self) -> float:
        """Pairs per second."""
        return len(self.figures) / max(self.seconds, 1e-9)

    def mean_metrics(self) -> tuple[SceneFlowMetrics | None, int]:
        """The mean over the pairs whose true flow is known, and their number."""
        known, mean = [each.metrics for each in self.figures.values() if each.metrics is not None], MeanMetrics()
        for metrics in known:
            mean.add(metrics)
        return mean.result() if known else None, len(known)


def predict_pairs(
    predictor: FlowPredictor,
    pairs: Sequence[CloudPair],
    outputs: Sequence[Path],
    progress: ProgressCallback | None = None,
) -> Predictions:
    """Write the flow of each pair to its output. The next clouds are read while a flow is computed.

    If a pair begins with the cloud that ended the pair before, as in a sequence, that cloud is encoded once.
    Raises: BpfnError: a pair cannot be read, predicted or written; says which, and how many are written.
    """
    start, figures = time.monotonic(), dict[Path, FlowFigures]()
    with contextlib.closing(map_in_threads(PairReader(), pairs, threads=1)) as clouds:
        for pair, following, output in zip(pairs, [*pairs[1:], None], outputs, strict=True):
            with _counted(len(figures), len(pairs), output.parent):
                pc1, pc2, truth = next(clouds)
                with _named(pair):
                    flow = predictor(pc1, pc2, keep=following is not None and following.first == pair.second)
                    figures[output] = FlowFigures.of(flow, pc1, truth)
                write_points(output, flow)
            if progress is not None:
                progress(len(figures), len(pairs))
    return Predictions(figures, time.monotonic() - start)


@contextlib.contextmanager
def _named(pair: CloudPair) -> Iterator[None]:
    """Put the pair before what is wrong with its points."""
    try:
        yield
    except (ShapeError, NonFiniteError) as error:
        raise type(error)(f"{pair}: {error}") from error


@contextlib.contextmanager
def _counted(written: int, total: int, folder: Path) -> Iterator[None]:
    """Add to an error how many flows are written."""
    try:
        yield
    except BpfnError as error:
        raise type(error)(f"{error} ({written} of {total} flows are written to {printable(folder)})") from error
