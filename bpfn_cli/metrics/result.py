# SPDX-License-Identifier: MIT
"""The result file of an evaluation, `evaluations/*.json` of a run: what `bpfn eval` writes and a report reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bpfn_cli.history import Step

MODEL, TEACHER = "model", "teacher"
ZERO_FLOW, NEAREST_NEIGHBOR, RIGID_ICP = "zero_flow", "nearest_neighbor", "rigid_icp"
BASELINE_NAMES = (ZERO_FLOW, NEAREST_NEIGHBOR, RIGID_ICP)  # files of older versions lack the last
BASELINE_TITLES = {ZERO_FLOW: "zero flow", NEAREST_NEIGHBOR: "nearest neighbor", RIGID_ICP: "rigid ICP"}

Name = Annotated[str, Field(min_length=1, max_length=255)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Positive = Annotated[int, Field(ge=1, le=1 << 53)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class Schema(BaseModel):
    """Base of what is read from result files: frozen, typed strictly, finite; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


RENAMED = {"argoverse2": "lidar_logs"}  # dataset kinds of older versions


class Dataset(Schema):
    """The scenes that were measured. region: as of a dataset format; None: it has no choice, or an older version."""

    kind: Name
    split: Name
    path: str = ""
    scenes: Positive
    sha256: Name
    region: Literal["radius", "square"] | None = None

    @field_validator("kind")
    @classmethod
    def _current(cls, kind: str) -> str:
        return RENAMED.get(kind, kind)


class Checkpoint(Schema):
    """The weights that were measured; `which` epoch's: best or last. history: the steps that made them."""

    which: Name
    path: str = ""
    variant: str = ""
    sha256: Name
    history: tuple[Step, ...] = ()


class MetricRow(Schema):
    """The metrics of one predictor: metres, pixels, or fractions of the points. Those in 2D need a camera.

    A name that ends in `_full` is over all points, the others over the points visible in both frames.
    """

    name: Annotated[
        str, Field(pattern=r"^(model|model_bf16|model_fp16|teacher|zero_flow|nearest_neighbor|rigid_icp)(_full)?$")
    ]
    epe3d: Amount
    acc3d_strict: Share
    acc3d_relax: Share
    outliers3d: Share
    epe2d: Amount | None
    acc2d: Share | None


class MotionRow(Schema):
    """EPE3D in metres of one predictor, over the moving and over the static points; None: there are none.

    Of older versions: a mean over the scenes that have such points.
    """

    name: Name
    epe3d_dynamic: Amount | None
    epe3d_static: Amount | None


class ClassTable(Schema):
    """EPE3D in metres by class of points, of each predictor: errors and points are summed over all scenes.

    points: by class. epe3d: None: the class has no point.
    """

    partition: Name
    classes: tuple[Name, ...]
    points: tuple[Count, ...]
    epe3d: dict[Name, tuple[Amount | None, ...]]

    @model_validator(mode="after")
    def _check_lengths(self) -> ClassTable:
        if {len(self.points), *map(len, self.epe3d.values())} - {len(self.classes)}:
            raise ValueError("needs one value for each class")
        return self

    def is_like(self, other: ClassTable | None) -> bool:
        """Whether `other` has the same classes of as many points, so that errors can be compared."""
        return other is not None and (self.classes, self.points) == (other.classes, other.points)

    def with_teacher_of(self, earlier: ClassTable | None) -> ClassTable:
        """This table with the teacher's errors of an `earlier` one of the same points."""
        if earlier is None or not self.is_like(earlier) or TEACHER not in earlier.epe3d:
            return self
        return self.model_copy(update={"epe3d": {**self.epe3d, TEACHER: earlier.epe3d[TEACHER]}})


class BucketTable(Schema):
    """Bucket-normalized EPE by class of points, of each predictor, see `metrics.classes.BucketNormalized`."""

    classes: tuple[Name, ...]
    static_points: tuple[Count, ...]
    dynamic_points: tuple[Count, ...]
    static: dict[Name, tuple[Amount | None, ...]]
    dynamic: dict[Name, tuple[Amount | None, ...]]

    def with_teacher_of(self, earlier: BucketTable | None) -> BucketTable:
        """This table with the teacher's errors of an `earlier` one of the same points."""
        counts = self.classes, self.static_points, self.dynamic_points
        if earlier is None or (earlier.classes, earlier.static_points, earlier.dynamic_points) != counts:
            return self
        if TEACHER not in earlier.static:
            return self
        static = {**self.static, TEACHER: earlier.static[TEACHER]}
        return self.model_copy(
            update={"static": static, "dynamic": {**self.dynamic, TEACHER: earlier.dynamic[TEACHER]}}
        )

    @model_validator(mode="after")
    def _check_lengths(self) -> BucketTable:
        columns = [self.static_points, self.dynamic_points, *self.static.values(), *self.dynamic.values()]
        if {*map(len, columns)} - {len(self.classes)} or self.static.keys() != self.dynamic.keys():
            raise ValueError("needs one value for each class and predictor")
        return self


class SceneRow(Schema):
    """EPE3D in metres on one scene: of the model, and of each other predictor under its name.

    class_points, class_errors_m: the model's sums by class, of each partition in `EvaluationResult.by_class`.
    """

    model_config = ConfigDict(extra="allow")

    name: Name
    model: Amount
    class_points: dict[Name, tuple[Count, ...]] = {}
    class_errors_m: dict[Name, tuple[Amount, ...]] = {}


OPTIONAL = ("parts", "by_motion", "by_class", "ego_motion", "bucket_normalized")  # of the keys of a result


class EvaluationResult(Schema):
    """A network and the baselines on one dataset.

    parts: points of each cloud that the network saw at a time; None: all. by_motion: only of older versions.
    ego_motion: how the motion of the sensor is known, beyond which points move; both: given in some scenes only.
    """

    format: Literal[1]
    dataset: Dataset
    points: Positive
    seed: int
    parts: Positive | None = None
    checkpoint: Checkpoint
    rows: tuple[MetricRow, ...]
    by_motion: tuple[MotionRow, ...] = ()
    by_class: tuple[ClassTable, ...] = ()
    ego_motion: Literal["given", "fitted", "both"] | None = None
    bucket_normalized: BucketTable | None = None
    scenes: tuple[SceneRow, ...] = ()

    @model_validator(mode="after")
    def _check_rows(self) -> EvaluationResult:
        names = [row.name for row in self.rows]
        if MODEL not in names or len(set(names)) != len(names):
            raise ValueError("needs one row `model` and at most one row of each other name")
        return self

    def row(self, name: str) -> MetricRow | None:
        """The metrics of one predictor, or None if it was not measured."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def model(self) -> MetricRow:
        return next(row for row in self.rows if row.name == MODEL)

    def with_teacher_of(self, earlier: EvaluationResult) -> EvaluationResult:
        """This result with the teacher's metrics of an `earlier` one of the same weights, points and scenes."""
        teacher = [row for row in earlier.rows if row.name.removesuffix("_full") == TEACHER]
        if not teacher or self.row(TEACHER) is not None or earlier.file_name != self.file_name:
            return self
        tables = [one.with_teacher_of(earlier.classes(one.partition)) for one in self.by_class]
        buckets = self.bucket_normalized and self.bucket_normalized.with_teacher_of(earlier.bucket_normalized)
        update = {"rows": (*self.rows, *teacher), "by_class": tuple(tables), "bucket_normalized": buckets}
        return self.model_copy(update=update)

    def classes(self, partition: str) -> ClassTable | None:
        """EPE3D by class of a partition; None: not measured."""
        return next((table for table in self.by_class if table.partition == partition), None)

    @property
    def motion(self) -> MotionRow | None:
        """EPE3D of the model over moving and static points."""
        table = self.classes("motion")
        if table is None or MODEL not in table.epe3d:
            return next((row for row in self.by_motion if row.name == MODEL), None)
        errors = dict(zip(table.classes, table.epe3d[MODEL], strict=True))
        return MotionRow(name=MODEL, epe3d_dynamic=errors.get("dynamic"), epe3d_static=errors.get("static"))

    @property
    def file_name(self) -> str:
        """A name that only results of the same weights, points and scenes share."""
        data = self.dataset
        parts = (data.kind, data.split, data.sha256[:8], self.points, self.seed, self.checkpoint.sha256[:8])
        in_parts = f"-parts{self.parts}" if self.parts else ""
        square = "-square" if data.region == "square" else ""
        return "-".join(map(str, parts)) + in_parts + square + ".json"

    @property
    def relative_gain(self) -> float | None:
        """Fraction by which the EPE3D of the network is below that of the best baseline; None without a baseline."""
        best = min((row.epe3d for row in self.rows if row.name in BASELINE_NAMES), default=0)
        return 1 - self.model.epe3d / best if best else None

    def summary(self) -> str:
        """One line: the EPE3D of the network and of the baselines."""
        gain = self.relative_gain
        compared = "" if gain is None else f", {abs(gain):.0%} {'below' if gain >= 0 else 'above'} the best baseline"
        baselines = (row for name in BASELINE_NAMES if (row := self.row(name)))
        others = ", ".join(f"{BASELINE_TITLES[row.name]} {row.epe3d:.4f}" for row in baselines)
        return f"{self.checkpoint.variant}: EPE3D {self.model.epe3d:.4f} m{compared} ({others})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what was not measured is left out."""
        empty = {name for name in OPTIONAL if not getattr(self, name)}
        scenes = {"__all__": {"class_points", "class_errors_m"}}
        exclude: dict[str, Any] = dict.fromkeys(empty, True) | ({} if self.by_class else {"scenes": scenes})
        if self.dataset.region is None:
            exclude["dataset"] = {"region"}
        if not self.checkpoint.history:
            exclude["checkpoint"] = {"history"}
        return self.model_dump(mode="json", exclude=exclude)
