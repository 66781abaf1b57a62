"""What the report knows: one run, or the runs of a comparison, read from their folders alone.

Optional parts that are absent are left out; a file that is there but is no JSON, or has another form than
everlearn writes, is a `RunError` that names it. Nothing of the rows (predictions, synthetic instances) is read
here: sections that show them read them when they need them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from everlearn.artifacts import RECORD, is_plain, read_record
from everlearn.errors import RunError
from everlearn.files import read_json, read_vouched, sha256_of
from everlearn.layout import BASE_STAGE
from everlearn.recipe import read_stored
from everlearn.report.facts.forms import (
    AnswersForm,
    BenchmarkForm,
    EstimateForm,
    JudgeForm,
    ManifestForm,
    MatrixForm,
    PlanPartForm,
    ProbingForm,
    in_form,
    read_form,
)
from everlearn.report.facts.parsing import form_of, items, mapping, number, optional, stands

Cells = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, where known."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage as the manifest names it: 1-based index, folder name, tasks trained, and the weights it started from
    (`previous`, `base`, or the name of an earlier stage)."""

    index: int
    name: str
    tasks: tuple[str, ...]
    start: str = "previous"


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """A task as the manifest describes it."""

    name: str
    metric: str
    train_rows: int | None
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Matrix:
    """Scores in per cent: `values[stage - 1][task]`; None where not measured.

    `empty[stage][task]` answers of `answers[task]` were empty (stage 0: the base); both absent in older runs. Of rows
    of words `types[stage - 1]` is the F1 of each entity type.
    """

    tasks: tuple[str, ...]
    stages: tuple[str, ...]
    base: Cells
    values: tuple[Cells, ...]
    intervals: tuple[tuple[Estimate, ...], ...]
    answers: tuple[int, ...] = ()
    empty: tuple[tuple[int | None, ...], ...] = ()
    types: tuple[Mapping[str, float], ...] = ()

    def empty_at(self, stage: int, task: str) -> tuple[int, int]:
        """How many answers were empty, and of how many; 0 of 0 where that was not counted."""
        column = self.tasks.index(task) if task in self.tasks else len(self.answers)
        row = self.empty[stage] if stage < len(self.empty) else ()
        found = row[column] if column < min(len(row), len(self.answers)) else None
        return (0, 0) if found is None else (found, self.answers[column])

    def at(self, stage: int, task: str) -> float | None:
        """The score after a stage; stage 0 is the base model."""
        row = self.values[stage - 1] if stage else self.base
        column = self.tasks.index(task)
        return row[column] if column < len(row) else None

    def course(self, task: str) -> list[float | None]:
        """The scores of a task from the base model to the last stage."""
        return [self.at(stage, task) for stage in range(len(self.values) + 1)]


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step: its place below the run folder, how long it took, whether it was found in the cache."""

    place: str
    seconds: float
    reused: bool
    fingerprint: str
    finished: str
    size_bytes: int
    generated_tokens: int = 0
    peak_memory_bytes: int = 0
    is_training: bool = False

    @property
    def stage(self) -> str:
        """Folder name of its stage."""
        parts = self.place.split("/")
        return parts[1] if len(parts) > 2 and parts[0] == "stages" else ""

    @property
    def kind(self) -> str:
        """`training`, `synthesis`, `predictions`, `general`, ..."""
        parts = self.place.split("/")
        return parts[2] if self.stage else parts[0]


@dataclass(frozen=True, slots=True)
class General:
    """General ability at one stage; each part where measured."""

    perplexity: Estimate
    microtasks: Estimate


@dataclass(frozen=True, slots=True)
class Probing:
    """What probes get right, in per cent: `probes[name][stage][task]`, stage 0 being the base model."""

    tasks: tuple[str, ...]
    probes: Mapping[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    label: str
    method: str
    seed: int | None
    complete: bool
    stages: tuple[Stage, ...]
    tasks: tuple[TaskFacts, ...]
    matrix: Matrix | None
    metrics: dict[str, Estimate]
    definitions: dict[str, str]
    general: dict[int, General]
    steps: tuple[Step, ...]
    manifest: Mapping[str, object] = field(repr=False)
    confidence: float | None = None
    answers: AnswersForm | None = None
    method_title: str = ""
    traits: tuple[str, ...] = ()
    scenario: str | None = None
    probing: Probing | None = None
    has_heads: bool = False
    planned: tuple[PlanPartForm, ...] = ()
    benchmarks: Mapping[int, Mapping[str, BenchmarkForm]] = field(default_factory=dict)
    judge: JudgeForm | None = None

    @property
    def finished(self) -> int:
        """How many stages have been measured."""
        return len(self.matrix.values) if self.matrix else 0

    @property
    def is_joint(self) -> bool:
        """Whether all tasks are trained in one stage: an upper bound, not continual learning."""
        return len(self.stages) == 1 and len(self.stages[0].tasks) > 1

    @property
    def is_separate(self) -> bool:
        """Whether every stage starts from the base model: one model a task, nothing is learnt on top of another.

        What chooses among such models by itself answers all tasks, and is measured as what it is.
        """
        return (
            len(self.stages) > 1 and self.answers is None and all(stage.start == "base" for stage in self.stages[1:])
        )

    @property
    def seconds(self) -> float:
        """Computing time of all steps, reused ones counted with what they took when made."""
        return sum(step.seconds for step in self.steps)

    def stage_folder(self, stage: int) -> Path:
        """Folder of a stage by index; 0 is the base model."""
        names = {item.index: item.name for item in self.stages}
        return self.folder / "stages" / (names[stage] if stage else BASE_STAGE)


def read_run(folder: Path) -> Run:
    """Reads a run folder, finished or not.

    Raises:
        RunError: there is no manifest, or a file is corrupt.
    """
    path = folder / "manifest.json"
    manifest = read_vouched(path)
    form = in_form(path, manifest, ManifestForm)
    _refuse_unrecorded(folder, form)
    stages = tuple(Stage(stage.index, stage.name, tuple(stage.tasks), stage.start) for stage in form.stages)
    metrics, definitions = _metrics(folder / "metrics.json")
    return Run(
        folder=folder,
        label=form.label or form.method.name or folder.name,
        method=form.method.name,
        method_title=form.method.title,
        traits=tuple(form.method.traits),
        scenario=form.scenario,
        seed=form.seed,
        complete=form.status == "complete",
        stages=stages,
        tasks=tuple(TaskFacts(task.name, task.metric, task.train_rows, len(task.classes)) for task in form.tasks),
        matrix=_matrix(folder / "matrix.json", form),
        metrics=metrics,
        definitions=definitions,
        general=_general(folder, stages),
        steps=tuple(
            Step(
                place,
                step.seconds,
                step.reused,
                step.fingerprint,
                step.finished,
                sum(step.files.values()),
                step.generated_tokens,
                step.peak_memory_bytes,
                is_training={"history.jsonl", "summary.json"} <= step.files.keys(),
            )
            for place, step in form.steps.items()
        ),
        manifest=manifest,
        confidence=_confidence(folder / "recipe.yaml"),
        answers=form.answers,
        probing=_probing(folder / "probing.json"),
        has_heads=any("heads/heads.safetensors" in step.files for step in form.steps.values()),
        planned=tuple(form.plan.parts),
        benchmarks=_benchmarks(folder, stages),
        judge=_judge(folder, stages),
    )


def estimate(form: EstimateForm) -> Estimate:
    """An estimate as a file holds it."""
    return Estimate(form.mean if form.value is None else form.value, form.low, form.high)


def _matrix(path: Path, manifest: ManifestForm) -> Matrix | None:
    if not path.exists():
        return None
    form = read_form(path, MatrixForm)
    tasks = [task.name for task in manifest.tasks]
    stages = [stage.name for stage in manifest.stages][: len(form.stages)]  # the others are still to come
    for what, found, known in (("tasks", form.tasks, tasks), ("stages", form.stages, stages)):
        if found != known:
            raise RunError(
                f"{path} is corrupt (its {what} are {', '.join(found)}; those of manifest.json beside it "
                f"{', '.join(known)}): delete the one that was changed and run 'everlearn resume'."
            )
    values = [tuple(row) for row in form.values]
    while values and all(cell is None for cell in values[-1]):  # stages that are still to come
        values.pop()
    intervals = tuple(tuple(Estimate(None, *(cell or ())) for cell in row) for row in form.intervals)
    empty = tuple(tuple(row) for row in (form.base_empty, *form.empty))
    answers = tuple(form.answers)
    names = tuple(form.tasks), tuple(form.stages)
    return Matrix(*names, tuple(form.base), tuple(values), intervals, answers, empty, tuple(form.types))


def _probing(path: Path) -> Probing | None:
    if not path.exists():
        return None
    form = read_form(path, ProbingForm)
    probes = {name: tuple(map(tuple, (probe.base, *probe.values))) for name, probe in form.probes.items()}
    return Probing(tuple(form.tasks), probes)


def _refuse_unrecorded(folder: Path, manifest: ManifestForm) -> None:
    """Rows and scores, shown or what is shown was computed from them, are as the records say; weights are not read."""
    for place, step in manifest.steps.items():
        artifact = folder / place
        if not artifact.is_dir() or not any(artifact.iterdir()):
            continue
        if not (artifact / RECORD).exists():
            raise RunError(f"{artifact / RECORD} is missing: run 'everlearn resume {folder}', which mends it.")
        if step.record is not None and not (
            is_plain(artifact, RECORD) and sha256_of(artifact / RECORD) == step.record
        ):
            raise _changed(artifact / RECORD, folder)
        record = read_record(artifact)
        for name in record.files if record else [RECORD]:
            if name.endswith((".json", ".jsonl")) and "/" not in name:
                stands(artifact / name)
    for name, digest in manifest.rows.items():
        if (folder / name).exists() and not (is_plain(folder, name) and sha256_of(folder / name) == digest):
            raise _changed(folder / name, folder)


def _changed(path: Path, folder: Path) -> RunError:
    return RunError(
        f"{path} is corrupt (it was changed after everlearn had written it): run 'everlearn resume {folder}', which "
        "writes it again."
    )


def _confidence(path: Path) -> float | None:
    """Level of the run's intervals; None where the recipe is absent or unreadable (it is shown as text)."""
    try:
        return float(read_stored(path, "")["evaluation"]["confidence"])
    except (RunError, ValueError, TypeError, KeyError):
        return None


def _metrics(path: Path) -> tuple[dict[str, Estimate], dict[str, str]]:
    entries = read_vouched(path) if path.exists() else {}
    with form_of(path):
        definitions = {str(name): str(text) for name, text in mapping(entries.pop("definitions", None)).items()}
    known = {name: in_form(path, entry, EstimateForm) for name, entry in entries.items()}
    return {name: estimate(entry) for name, entry in known.items()}, definitions


def _general(folder: Path, stages: Sequence[Stage]) -> dict[int, General]:
    found = {}
    for index, name in [(0, BASE_STAGE), *((stage.index, stage.name) for stage in stages)]:
        parsed = optional(folder / "stages" / name / "general" / "scores.json", _general_scores)
        if parsed:
            found[index] = parsed
    return found


def _benchmarks(folder: Path, stages: Sequence[Stage]) -> dict[int, dict[str, BenchmarkForm]]:
    """By stage and by the name of the benchmark's folder."""
    found: dict[int, dict[str, BenchmarkForm]] = {}
    for index, name in [(0, BASE_STAGE), *((stage.index, stage.name) for stage in stages)]:
        for path in sorted((folder / "stages" / name / "benchmarks").glob("*/scores.json")):
            if stands(path):
                found.setdefault(index, {})[path.parent.name] = in_form(path, read_json(path), BenchmarkForm)
    return found


def _judge(folder: Path, stages: Sequence[Stage]) -> JudgeForm | None:
    """Of the final model; a run that has grown since is judged anew."""
    path = folder / "stages" / stages[-1].name / "judge" / "scores.json" if stages else folder / "judge"
    return in_form(path, read_json(path), JudgeForm) if stands(path) else None


def _general_scores(value: Mapping[str, object]) -> General:
    return General(_measured(mapping(value.get("perplexity"))), _measured(mapping(value.get("microtasks"))))


def _measured(entry: Mapping[str, object]) -> Estimate:
    ends = [number(end) for end in items(entry.get("interval") or [None, None])]
    return Estimate(number(entry.get("value")), *ends)
