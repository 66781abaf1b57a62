"""The forms of the JSON files that a report reads, and how they belong together.

What does not have its form is refused with the file's name before anything is shown: another type, a number out of
its range, rows of another length, names that occur twice, or that would lead out of the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from everlearn.artifacts import is_below
from everlearn.errors import RunError
from everlearn.files import read_vouched

_SLACK = 1e-6  # beyond 0 and 100, by rounding


def _place(name: str) -> str:
    if not is_below(name):
        raise ValueError("it is no name of a folder below the run")
    return name


def _score_or_none(value: object) -> object:
    return None if isinstance(value, float) and value != value else value  # not measured, in the first releases


Place = Annotated[str, AfterValidator(_place)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Points = Annotated[float, Field(ge=-100 - _SLACK, le=100 + _SLACK)]
Score = Annotated[float, Field(ge=-_SLACK, le=100 + _SLACK)]
Cell = Annotated[Score | None, BeforeValidator(_score_or_none)]


def _in_order(ends: list[float]) -> list[float]:
    if ends[0] > ends[1]:
        raise ValueError("the ends of an interval are in the wrong order")
    return ends


Interval = Annotated[list[Score], Field(min_length=2, max_length=2), AfterValidator(_in_order)]


class Form(BaseModel):
    """An object in a file; keys that no report shows are looked past."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class StageForm(Form):
    """A stage as the manifest names it."""

    index: Annotated[int, Field(ge=1)]
    name: Place
    tasks: Annotated[list[str], Field(min_length=1)]
    start: str = "previous"


class TaskForm(Form):
    """A task as the manifest describes it."""

    name: Place
    metric: str = ""
    train_rows: Count | None = None
    classes: list[str] = []


class StepForm(Form):
    """A finished step."""

    seconds: Amount = 0.0
    reused: bool = False
    fingerprint: str = ""
    finished: str = ""
    files: dict[str, Count] = {}
    record: str | None = None
    generated_tokens: Count = 0
    peak_memory_bytes: Count = 0


class SummaryForm(Form):
    """`summary.json` of a training."""

    influence_seconds: dict[str, Amount] = {}
    steps: Count = 0
    tokens: Count = 0


class MethodForm(Form):
    """The method of a run."""

    name: str = ""
    title: str = ""
    options: dict[str, Any] = {}
    traits: list[str] = []


class AnswersForm(Form):
    """How a run chooses among several models that answer."""

    models: Count
    knows_task: bool


class PlanPartForm(Form):
    """What a stage was to do of one kind, as a run has planned it."""

    stage: Place
    steps: Count = 0
    trained_tokens: Count = 0
    most_written_tokens: Count = 0


class RunPlanForm(Form):
    """The plan that a run begins with."""

    parts: list[PlanPartForm] = []


class ManifestForm(Form):
    """`manifest.json` of a run of tasks."""

    label: str = ""
    status: str = ""
    seed: int | None = None
    method: MethodForm = MethodForm()
    stages: Annotated[list[StageForm], Field(min_length=1)]
    tasks: Annotated[list[TaskForm], Field(min_length=1)]
    steps: dict[str, StepForm] = {}
    rows: dict[str, str] = {}
    notes: list[str] = []
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    model: dict[str, Any] = {}
    answers: AnswersForm | None = None
    scenario: Literal["class_incremental", "task_incremental"] | None = None
    plan: RunPlanForm = RunPlanForm()

    @model_validator(mode="after")
    def _belongs_together(self) -> ManifestForm:
        if [stage.index for stage in self.stages] != list(range(1, len(self.stages) + 1)):
            raise ValueError("the stages are not numbered from 1 on")
        tasks = [task.name for task in self.tasks]
        _refuse_twice("stage", [stage.name for stage in self.stages])
        _refuse_twice("task", tasks)
        for stage in self.stages:
            if strange := [name for name in stage.tasks if name not in tasks]:
                raise ValueError(f"stage {stage.name} trains {strange[0]!r}, which is no task of the run")
        if strange := [place for place in (*self.steps, *self.rows) if not is_below(place)]:
            raise ValueError(f"{strange[0]!r} is no place in the run folder")
        return self


Finding = Annotated[float, Field(ge=-1e100, le=1e100)]


class CurveForm(Form):
    """A course that a method found."""

    x: str
    points: list[Annotated[list[Finding | None], Field(min_length=2, max_length=2)]]

    @model_validator(mode="after")
    def _has_places(self) -> CurveForm:
        if any(x is None for x, _ in self.points):
            raise ValueError("a point of a curve has no place")
        return self


class TableForm(Form):
    """A small table that a method found."""

    heads: Annotated[list[str], Field(min_length=1)]
    rows: list[list[str | Finding | None]]

    @model_validator(mode="after")
    def _is_even(self) -> TableForm:
        if any(len(row) != len(self.heads) for row in self.rows):
            raise ValueError("a row of a table has not as many cells as there are heads")
        return self


class FindingsForm(Form):
    """`findings.json` of a stage."""

    numbers: dict[str, Finding | None] = {}
    curves: dict[str, CurveForm] = {}
    tables: dict[str, TableForm] = {}


class WeightsForm(Form):
    """Weights in the lineage of a run."""

    place: Place
    fingerprint: str
    by: str
    origins: Annotated[list[Place], Field(alias="from")]


class AddedForm(Form):
    """A stage in the lineage of a run."""

    name: Place
    added: str
    everlearn: str
    tasks: dict[str, Count]
    rehearsed: dict[str, Count] = {}
    weights: list[WeightsForm] = []
    released: str = ""


class LineageForm(Form):
    """`lineage.json`."""

    stages: list[AddedForm]


class MatrixForm(Form):
    """`matrix.json`: after each measured stage the score of each task."""

    tasks: list[str]
    stages: list[str]
    base: list[Cell] = []
    values: list[list[Cell]]
    intervals: list[list[Interval | None]] = []
    answers: list[Count] = []
    base_empty: list[Count | None] = []
    empty: list[list[Count | None]] = []
    types: list[dict[str, Score]] = []

    @model_validator(mode="after")
    def _has_its_shape(self) -> MatrixForm:
        width, height = len(self.tasks), len(self.stages)
        for name, rows in (("values", self.values), ("intervals", self.intervals), ("empty", self.empty)):
            if len(rows) != height and (rows or name == "values"):
                raise ValueError(f"{name} has {len(rows)} rows for {height} stages")
            if wrong := [len(row) for row in rows if len(row) != width]:
                raise ValueError(f"{name} has a row of {wrong[0]} cells for {width} tasks")
        for name, cells in (("base", self.base), ("answers", self.answers), ("base_empty", self.base_empty)):
            if cells and len(cells) != width:
                raise ValueError(f"{name} has {len(cells)} cells for {width} tasks")
        return self


class ProbeForm(Form):
    """What one probe gets right of each task, before any training and after each stage."""

    base: list[Score]
    values: list[list[Score]]


class ProbingForm(Form):
    """`probing.json`."""

    tasks: Annotated[list[str], Field(min_length=1)]
    stages: list[str]
    probes: Annotated[dict[str, ProbeForm], Field(min_length=1)]

    @model_validator(mode="after")
    def _has_its_shape(self) -> ProbingForm:
        for name, probe in self.probes.items():
            if len(probe.values) != len(self.stages):
                raise ValueError(f"{name} has {len(probe.values)} rows for {len(self.stages)} stages")
            if wrong := [row for row in (probe.base, *probe.values) if len(row) != len(self.tasks)]:
                raise ValueError(f"{name} has a row of {len(wrong[0])} cells for {len(self.tasks)} tasks")
        return self


class EstimateForm(Form):
    """A continual metric with its interval: `value` in `metrics.json`, `mean` over seeds in `comparison.json`."""

    value: Points | None = None
    mean: Points | None = None
    low: float | None = None
    high: float | None = None


class ComparisonRunForm(Form):
    """A run of a comparison."""

    folder: str


class ComparisonForm(Form):
    """`comparison.json`."""

    name: str = ""
    runs: list[ComparisonRunForm]
    summary: dict[str, dict[str, Any]] = {}


class PlanForm(Form):
    """`plan.json` of a comparison."""

    methods: list[dict[str, Any]]
    seeds: list[int]


_FormKind = TypeVar("_FormKind", bound=Form)


def read_form(path: Path, kind: type[_FormKind]) -> _FormKind:
    """Reads a JSON file of a form.

    Raises:
        RunError: it is missing, was changed, or does not have the form; names the file and the key.
    """
    return in_form(path, read_vouched(path), kind)


def in_form(path: Path, value: object, kind: type[_FormKind]) -> _FormKind:
    """What a file holds in a form.

    Raises:
        RunError: it does not have the form; names the file and the key.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        raise misformed(path, f"{f'{key}: ' if key else ''}{fault['msg'].removeprefix('Value error, ')}") from None


def misformed(path: Path, why: str) -> RunError:
    """The sentence for a file that everlearn cannot have written as it is."""
    return RunError(
        f"{path} is corrupt (it does not have the form that everlearn writes: {why}): delete it and run 'everlearn "
        "resume'."
    )


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{what} {twice[0]!r} stands there twice")


class BenchmarkMetricForm(Form):
    """A metric of lm-evaluation-harness, by its own name and in its own scale."""

    metric: str
    filter: str = "none"
    value: float | None
    stderr: float | None = None
    rises: bool = True


class BenchmarkResultForm(Form):
    """A group or task of the harness."""

    name: str
    is_group: bool = False
    version: str = ""
    questions: Count | None = None
    of: Count = 0
    metrics: list[BenchmarkMetricForm]


class BenchmarkForm(Form):
    """What one model state scored on one entry of `evaluation.general_tasks`; groups come before tasks."""

    task: str
    lm_eval: str
    shots: list[Count] = []
    limit: Count | None = None
    prompts: Count = 0
    cut: Count = 0
    results: Annotated[list[BenchmarkResultForm], Field(min_length=1)]


class RateForm(Form):
    """A win rate in per cent."""

    value: Score
    low: Score
    high: Score


class JudgedForm(Form):
    """What a judge said of some rows."""

    judged: Count
    won: Count
    tied: Count
    lost: Count
    equal: Count = 0
    differing: Count = 0
    unreadable: Count = 0
    win_rate: RateForm | None = None
    length_controlled: RateForm | None = None


class JudgeForm(Form):
    """`judge/scores.json`."""

    judge: str
    against: str
    all: JudgedForm
    tasks: dict[str, JudgedForm]
