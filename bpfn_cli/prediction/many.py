# SPDX-License-Identifier: MIT
"""Prediction of many pairs: read, predicted, written and measured one after the other."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.data.clouds.pairs import Pair, PairReader
from bpfn_cli.errors import BpfnError, NonFiniteError, ShapeError, printable
from bpfn_cli.metrics.classes import ClassSums, sum_of
from bpfn_cli.metrics.scene_flow import MeanMetrics, SceneFlowMetrics
from bpfn_cli.models.predict import FlowPredictor
from bpfn_cli.parallel import map_in_threads
from bpfn_cli.prediction.outputs import Outputs
from bpfn_cli.prediction.pair import FlowFigures, Treatment, predict_pair
from bpfn_cli.progress import ProgressCallback


@dataclass(frozen=True)
class Predictions:
    """What `predict_pairs` did. figures: by flow file. seconds: of the loop, with reading and writing."""

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

    def by_motion(self) -> ClassSums | None:
        """The sums over the pairs whose files tell dynamic and static rows apart."""
        known = [each.by_motion for each in self.figures.values() if each.by_motion is not None]
        return sum_of(known) if known else None


def predict_pairs(
    predictor: FlowPredictor,
    pairs: Sequence[Pair],
    outputs: Sequence[Outputs],
    *,
    treatment: Treatment,
    reader: PairReader,
    poses: Sequence[np.ndarray] | None = None,
    progress: ProgressCallback | None = None,
) -> Predictions:
    """Write the flow of each pair to its output. The next clouds are read while a flow is computed.

    If a pair begins with the cloud that ended the pair before, as in a sequence, that cloud is encoded once.

    Args: poses: (4, 4) of the sensor for each pair, or None.
    Raises: BpfnError: a pair cannot be read, predicted or written; says which, and how many are written.
    """
    start, figures = time.monotonic(), dict[Path, FlowFigures]()
    following = [*pairs[1:], None]
    given = [*poses] if poses else [None] * len(pairs)
    with contextlib.closing(map_in_threads(reader, pairs, threads=1)) as clouds:
        for pair, after, output, pose in zip(pairs, following, outputs, given, strict=True):
            with _counted(len(figures), len(pairs), output.flow.parent):
                read = next(clouds)
                with _named(pair):
                    done = predict_pair(predictor, read, treatment, pose=pose, keep=pair.leads_to(after))
                output.write(done, read.first, predictor.frame)
                figures[output.flow] = done.figures
            if progress is not None:
                progress(len(figures), len(pairs))
    return Predictions(figures, time.monotonic() - start)


@contextlib.contextmanager
def _named(pair: Pair) -> Iterator[None]:
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
