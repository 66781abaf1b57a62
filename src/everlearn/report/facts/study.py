"""One run or many as one thing to report on: methods, each with a run per seed.

A single run is a study of one method and one seed. Numbers over seeds are plain means; their intervals come from
`comparison.json` (t distribution over seeds) or, with one seed, from the run itself (bootstrap over instances).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from everlearn.errors import RunError
from everlearn.report.facts import kinds
from everlearn.report.facts.definitions import BOUNDED, CONTINUAL, Meaning
from everlearn.report.facts.forms import ComparisonForm, EstimateForm, PlanForm, in_form, read_form
from everlearn.report.facts.parsing import form_of
from everlearn.report.facts.reading import Cells, Estimate, Run, estimate, read_run
from everlearn.report.page import numbers
from everlearn.run_folder import COMPARISON, RUN, kind_of


@dataclass(frozen=True)
class MethodRuns:
    """The runs of one label, one per seed.

    Attributes:
        label: As the comparison names it.
        runs: In order of seed as listed; never empty.
        summary: Estimates over seeds by metric, where the comparison has them.
    """

    label: str
    runs: tuple[Run, ...]
    summary: Mapping[str, Estimate]

    @property
    def title(self) -> str:
        """The label for reading: the method's own title, or in older runs its name, in capitals where it is short."""
        run = self.first
        if run.method_title and self.label.startswith(run.method):
            return run.method_title + _spaced(self.label.removeprefix(run.method))
        parts = re.split("([ +-])", _spaced(self.label))
        return "".join(part.upper() if len(part) <= 3 else part for part in parts)

    @property
    def first(self) -> Run:
        """The run whose rows are shown."""
        return self.runs[0]

    @property
    def is_joint(self) -> bool:
        """Trained on all tasks at once: the upper bound."""
        return self.first.is_joint

    @property
    def is_reference(self) -> bool:
        """No continual learning, but a mark to compare with: all tasks at once, or a model for each task alone."""
        return self.is_joint or self.first.is_separate

    @property
    def remark(self) -> str:
        """What kind of reference it is, or that it is told the task; else empty."""
        if self.is_reference:
            return "upper bound: all tasks at once" if self.is_joint else "each task alone"
        return "task-incremental" if self.first.answers and self.first.answers.knows_task else ""

    @property
    def shortfall(self) -> str:
        """How far an unfinished method is; empty for a finished one."""
        return "" if self.first.complete else f"unfinished: {self.finished} of {len(self.first.stages)} stages"

    @property
    def finished(self) -> int:
        """Stages that every seed has finished."""
        return min(run.finished for run in self.runs)

    def estimate(self, metric: str) -> Estimate:
        """A continual metric over seeds; a score's interval is cut at 0 and 100.

        Of models for each task alone, only the average is known: of each task's own model.
        """
        if self.first.is_separate:
            own = [self.own_score(task) for stage in self.first.stages for task in stage.tasks]
            known = [value for value in own if value is not None]
            return Estimate(numbers.mean(known) if metric == "AR" and len(known) == len(own) else None)
        found = self.summary.get(metric, Estimate(None))
        if len(self.runs) == 1:
            found = self.first.metrics.get(metric, Estimate(None))
        elif found.value is None:
            found = _over([run.metrics.get(metric, Estimate(None)).value for run in self.runs])
        if metric in BOUNDED and found.low is not None and found.high is not None:
            return Estimate(found.value, max(0.0, found.low), min(100.0, found.high))
        return found

    def own_score(self, task: str) -> float | None:
        """The score of a task right after its own stage."""
        stages = [stage.index for stage in self.first.stages if task in stage.tasks]
        return self.score(stages[0], task).value if stages else None

    def seed_values(self, metric: str) -> list[float]:
        """The metric of each seed that has it, where there are several."""
        if len(self.runs) == 1 or self.first.is_separate:
            return []
        values = [run.metrics.get(metric, Estimate(None)).value for run in self.runs]
        return [value for value in values if value is not None]

    def score(self, stage: int, task: str) -> Estimate:
        """One cell of the matrix: mean over seeds with the range, or the one run's bootstrap interval."""
        cells = []
        for run in self.runs:
            if run.matrix is None or stage > run.finished or task not in run.matrix.tasks:
                return Estimate(None)
            cells.append(run.matrix.at(stage, task))
        if len(cells) > 1:
            return _over(cells)
        matrix = self.runs[0].matrix
        assert matrix is not None, "checked above"
        column = matrix.tasks.index(task)
        rows = matrix.intervals[stage - 1] if stage and stage <= len(matrix.intervals) else ()
        ends = rows[column] if column < len(rows) else Estimate(None)
        return Estimate(cells[0], ends.low, ends.high)

    def course(self, task: str) -> Cells:
        """Mean score of a task from the base model to the last finished stage."""
        return tuple(self.score(stage, task).value for stage in range(self.finished + 1))

    def general(self, stage: int, part: str) -> Estimate:
        """`microtasks` (per cent) or `perplexity` after a stage, over seeds."""
        found = []
        for run in self.runs:
            scores = run.general.get(stage)
            found.append(getattr(scores, part) if scores else Estimate(None))
        return found[0] if len(found) == 1 else _over([entry.value for entry in found])

    @property
    def seconds(self) -> Estimate:
        """Computing time over seeds."""
        return _over([run.seconds or None for run in self.runs])


@dataclass(frozen=True)
class Study:
    """What one report is about.

    Attributes:
        name: Of the run or comparison.
        folder: Where it stands.
        methods: In the comparison's order, by kind where there are many; one for a single run.
        left_out: Unfinished runs of methods that have finished ones; they are not shown.
        planned: How many runs the comparison is to have.
        is_comparison: Whether there is a comparison.json.
    """

    name: str
    folder: Path
    methods: tuple[MethodRuns, ...]
    left_out: int = 0
    planned: int = 1
    is_comparison: bool = False

    @property
    def tasks(self) -> list[str]:
        """Task names in order of arrival."""
        names: list[str] = []
        for method in self.methods:
            for run in method.runs:
                listed = run.matrix.tasks if run.matrix else [task.name for task in run.tasks]
                names += [name for name in listed if name not in names]
        return names

    @property
    def is_crowded(self) -> bool:
        """Whether there are more methods than lines can be told apart."""
        return len(self.methods) > kinds.MANY

    @cached_property
    def in_front(self) -> list[MethodRuns]:
        """The methods whose courses are drawn: all, or of each kind the one with the best average at the end."""
        return [found[0] for found in kinds.grouped(self.methods).values()] if self.is_crowded else [*self.methods]

    @property
    def meanings(self) -> list[Meaning]:
        """The continual metrics that any method has; the last accuracy only where it differs from AR."""
        found = [
            meaning
            for meaning in CONTINUAL
            if any(method.estimate(meaning.key).value is not None for method in self.methods)
        ]
        if all(method.estimate("AR").value == method.estimate("last_accuracy").value for method in self.methods):
            return [meaning for meaning in found if meaning.key != "last_accuracy"]
        return found

    @property
    def level(self) -> str:
        """How intervals are called: `95 % interval`, or `interval` where the recipe does not say."""
        confidence = self.methods[0].first.confidence if self.methods else None
        return f"{100 * confidence:g}{numbers.THIN}% interval" if confidence else "interval"

    @property
    def stage_count(self) -> int:
        """Stages of the longest run."""
        return max((len(run.stages) for method in self.methods for run in method.runs), default=0)

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        return self.finished_runs == self.planned

    @property
    def finished_runs(self) -> int:
        """How many runs are complete."""
        return sum(run.complete for method in self.methods for run in method.runs)

    @property
    def has_seeds(self) -> bool:
        """Whether any method was run more than once."""
        return any(len(method.runs) > 1 for method in self.methods)

    @property
    def continual(self) -> list[MethodRuns]:
        """The methods that learn task after task; references are left out."""
        return [method for method in self.methods if not method.is_reference]

    def metric_of(self, task: str) -> str:
        """Name of a task's main metric."""
        for method in self.methods:
            for facts in method.first.tasks:
                if facts.name == task:
                    return facts.metric
        return ""

    @property
    def shared_metric(self) -> str:
        """Name of the main metric that all tasks have in common; empty where they differ."""
        names = {self.metric_of(task) for task in self.tasks}
        return names.pop() if len(names) == 1 else ""

    def learnt_at(self, task: str) -> int | None:
        """The stage at which the stream brings a task."""
        for method in self.methods:
            for stage in method.first.stages:
                if task in stage.tasks and not method.is_joint:
                    return stage.index
        return None


def read_study(folder: Path) -> Study:
    """Reads a run folder or a comparison folder.

    Raises:
        RunError: the folder holds neither, or a file in it is corrupt.
    """
    kind = kind_of(folder)
    if kind == RUN and (folder / "manifest.json").exists():
        run = read_run(folder)
        return Study(folder.name, folder, (MethodRuns(run.label, (run,), {}),))
    if kind != COMPARISON:
        raise RunError(
            f"{folder} is no run folder (it has neither manifest.json of a run nor comparison.json): "
            "give the folder that 'everlearn run' or 'everlearn compare' made."
        )
    name, listed, summary = folder.name, [], {}
    path = folder / "comparison.json"
    if path.exists():
        form = read_form(path, ComparisonForm)
        name = form.name or folder.name
        with form_of(path):
            listed = [_below(folder, run.folder) for run in form.runs]
        summary = {label: _estimates(path, found) for label, found in form.summary.items()}
    places = dict.fromkeys(
        [*listed, *sorted(manifest.parent.resolve() for manifest in folder.glob("*/manifest.json"))]
    )
    runs: dict[str, list[Run]] = {}
    for place in places:
        if (place / "manifest.json").exists():
            run = read_run(place)
            runs.setdefault(run.label, []).append(run)
    shown = {label: _furthest(found) for label, found in runs.items()}
    left_out = sum(len(runs[label]) - len(found) for label, found in shown.items())
    methods = tuple(MethodRuns(label, tuple(found), summary.get(label, {})) for label, found in shown.items())
    if len(methods) > kinds.MANY:
        methods = tuple(method for group in kinds.grouped(methods).values() for method in group)
    plan = read_form(folder / "plan.json", PlanForm) if (folder / "plan.json").exists() else None
    planned = len(plan.methods) * len(plan.seeds) if plan else 0
    return Study(name, folder, methods, left_out, max(planned, len(places)), is_comparison=True)


def _furthest(runs: list[Run]) -> list[Run]:
    """The complete runs; while there is none, the one that has come furthest."""
    complete = [run for run in runs if run.complete]
    return complete or [max(runs, key=lambda run: run.finished)]


def _estimates(path: Path, found: Mapping[str, object]) -> dict[str, Estimate]:
    return {
        name: estimate(in_form(path, entry, EstimateForm)) for name, entry in found.items() if isinstance(entry, dict)
    }


def _below(folder: Path, relative: str) -> Path:
    place = (folder / relative).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ValueError(f"the run folder {relative!r} lies outside the comparison")
    return place


def _spaced(label: str) -> str:
    """The label with its names in words; values of options stand as they are written."""
    parts = re.split(r"(=\S*)", label)
    return "".join(part if part.startswith("=") else part.replace("_", " ") for part in parts)


def _over(values: list[float | None]) -> Estimate:
    """Mean and range of what every seed has."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Estimate(numbers.mean(known))
    return Estimate(numbers.mean(known), min(known), max(known))
