"""What the report knows: one run, or the runs of a comparison, read from their folders alone.

Optional parts that are absent are left out; a file that is there but is no JSON, or has another form than
everlearn writes, is a `RunError` that names it. Nothing of the rows (predictions, synthetic instances) is read
here: sections that show them read them when they need them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from everlearn.files import read_json
from everlearn.methods.base import BASE_STAGE
from everlearn.report.parsing import assert_mapping, form_of, items, mapping, mappings, number, optional, whole

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
    (`previous` or `base`)."""

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


@dataclass(frozen=True, slots=True)
class Matrix:
    """Scores in per cent: `values[stage - 1][task]`; None where not measured."""

    tasks: tuple[str, ...]
    stages: tuple[str, ...]
    base: Cells
    values: tuple[Cells, ...]
    intervals: tuple[tuple[Estimate, ...], ...]

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
        """Whether every stage starts from the base model: one model a task, nothing is learnt on top of another."""
        return len(self.stages) > 1 and all(stage.start == "base" for stage in self.stages[1:])

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
    with form_of(path):
        manifest = assert_mapping(read_json(path))
        method = mapping(manifest.get("method"))
        stages = tuple(
            Stage(
                whole(item["index"]) or 0,
                str(item["name"]),
                tuple(str(task) for task in items(item["tasks"])),
                str(item.get("start", "previous")),
            )
            for item in mappings(manifest.get("stages"))
        )
        tasks = tuple(
            TaskFacts(
                str(item["name"]),
                str(item.get("metric", "")),
                whole(item.get("train_rows")),
            )
            for item in mappings(manifest.get("tasks"))
        )
        name = str(method.get("name", ""))
        seed = whole(manifest.get("seed"))
        steps = tuple(_step(str(place), entry) for place, entry in mapping(manifest.get("steps")).items())
    metrics, definitions = _metrics(folder / "metrics.json")
    return Run(
        folder=folder,
        label=str(manifest.get("label") or name or folder.name),
        method=name,
        seed=seed,
        complete=manifest.get("status") == "complete",
        stages=stages,
        tasks=tasks,
        matrix=optional(folder / "matrix.json", _matrix),
        metrics=metrics,
        definitions=definitions,
        general=_general(folder, stages),
        steps=steps,
        manifest=manifest,
        confidence=_confidence(folder / "recipe.yaml"),
    )


def estimate(value: object) -> Estimate:
    """An estimate from `{"value" or "mean", "low", "high"}`."""
    entry = assert_mapping(value)
    return Estimate(number(entry.get("value", entry.get("mean"))), number(entry.get("low")), number(entry.get("high")))


def _matrix(value: Mapping[str, object]) -> Matrix:
    tasks = tuple(str(task) for task in items(value["tasks"]))
    values = [tuple(number(cell) for cell in items(row)) for row in items(value["values"])]
    while values and all(cell is None for cell in values[-1]):  # stages that are still to come
        values.pop()
    intervals = tuple(
        tuple(Estimate(None, *(number(end) for end in items(cell))) if cell else Estimate(None) for cell in items(row))
        for row in items(value.get("intervals") or [])
    )
    return Matrix(
        tasks=tasks,
        stages=tuple(str(stage) for stage in items(value["stages"])),
        base=tuple(number(cell) for cell in items(value.get("base") or [])),
        values=tuple(values),
        intervals=intervals,
    )


def _confidence(path: Path) -> float | None:
    """Level of the run's intervals; None where the recipe is absent or unreadable (it is shown as text)."""
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        return float(recipe["evaluation"]["confidence"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None


def _metrics(path: Path) -> tuple[dict[str, Estimate], dict[str, str]]:
    entries = optional(path, dict) or {}
    with form_of(path):
        definitions = {str(name): str(text) for name, text in mapping(entries.pop("definitions", None)).items()}
        return {name: estimate(entry) for name, entry in entries.items() if isinstance(entry, Mapping)}, definitions


def _general(folder: Path, stages: Sequence[Stage]) -> dict[int, General]:
    found = {}
    for index, name in [(0, BASE_STAGE), *((stage.index, stage.name) for stage in stages)]:
        parsed = optional(folder / "stages" / name / "general" / "scores.json", _general_scores)
        if parsed:
            found[index] = parsed
    return found


def _general_scores(value: Mapping[str, object]) -> General:
    return General(_measured(mapping(value.get("perplexity"))), _measured(mapping(value.get("microtasks"))))


def _measured(entry: Mapping[str, object]) -> Estimate:
    ends = [number(end) for end in items(entry.get("interval") or [None, None])]
    return Estimate(number(entry.get("value")), *ends)


def _step(place: str, entry: object) -> Step:
    facts = assert_mapping(entry)
    return Step(
        place=place,
        seconds=number(facts.get("seconds")) or 0.0,
        reused=bool(facts.get("reused")),
        fingerprint=str(facts.get("fingerprint", "")),
        finished=str(facts.get("finished", "")),
        size_bytes=sum(int(str(size)) for size in mapping(facts.get("files")).values()),
    )
