"""Scores on the harness's benchmarks: which numbers are shown, and what they are after a stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.report.page.numbers import NONE, mean

if TYPE_CHECKING:
    from everlearn.report.facts.forms import BenchmarkForm
    from everlearn.report.facts.study import MethodRuns


@dataclass(frozen=True, slots=True)
class Asked:
    """One number of a benchmark.

    Attributes:
        place: Name of the benchmark's folder.
        name: Of the group or task in the harness.
        metric: As the harness calls it.
        filter: Of the answers, where it is not `none`.
        rises: Whether higher is better.
        version: Of the group or task.
        shots: Examples before each question.
        questions: How many were asked, and of how many.
    """

    place: str
    name: str
    metric: str
    filter: str
    rises: bool
    version: str
    shots: str
    questions: str

    @property
    def title(self) -> str:
        """Name, metric and examples in one."""
        metric = self.metric if self.filter == "none" else f"{self.metric}, {self.filter}"
        return f"{self.name} ({metric}, {self.shots}-shot)"

    @property
    def arrow(self) -> str:
        """The direction of good."""
        return "↑" if self.rises else "↓"


def asked(methods: Iterable[MethodRuns]) -> list[Asked]:
    """All numbers that are shown: of groups where a benchmark has any, else of its tasks."""
    found: dict[Asked, None] = {}
    for method in methods:
        for run in method.runs:
            for of_stage in run.benchmarks.values():
                for place, form in of_stage.items():
                    found.update(dict.fromkeys(_numbers(place, form)))
    return list(found)


def headlines(methods: Sequence[MethodRuns]) -> list[Asked]:
    """The first number of each benchmark."""
    first: dict[str, Asked] = {}
    for one in asked(methods):
        first.setdefault(one.place, one)
    return list(first.values())


def _numbers(place: str, form: BenchmarkForm) -> list[Asked]:
    groups = [result for result in form.results if result.is_group and result.metrics]
    shots = " and ".join(map(str, form.shots)) or "0"
    return [
        Asked(
            place,
            result.name,
            metric.metric,
            metric.filter,
            metric.rises,
            result.version,
            shots,
            f"{result.questions or 0:,}" + (f" of {result.of:,}" if (result.questions or 0) < result.of else ""),
        )
        for result in groups or form.results
        for metric in result.metrics
    ]


def value(method: MethodRuns, stage: int, one: Asked) -> tuple[float | None, float | None]:
    """Mean over the seeds that were asked, and the harness's standard error where it is one run's."""
    values, errors = [], []
    for run in method.runs:
        form = run.benchmarks.get(stage, {}).get(one.place)
        for result in form.results if form else ():
            for metric in result.metrics:
                if (result.name, metric.metric, metric.filter) == (one.name, one.metric, one.filter):
                    values.append(metric.value)
                    errors.append(metric.stderr)
    known = [number for number in values if number is not None]
    return mean(known), errors[0] if len(errors) == 1 else None


def stages_asked(method: MethodRuns) -> list[int]:
    """The stages after which any seed was asked; 0 is the base."""
    return sorted({stage for run in method.runs for stage in run.benchmarks})


def told(found: tuple[float | None, float | None]) -> str:
    """In the harness's own scale and digits: `0.2461 ± 0.0036`."""
    number, error = found
    if number is None:
        return NONE
    return f"{number:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def about(methods: Iterable[MethodRuns]) -> str:
    """Which harness asked, and what of the prompts did not fit."""
    forms = [
        form for method in methods for run in method.runs for of in run.benchmarks.values() for form in of.values()
    ]
    versions = " and ".join(sorted({form.lm_eval for form in forms}))
    cut, prompts = sum(form.cut for form in forms), sum(form.prompts for form in forms)
    words = (
        f"Asked by lm-evaluation-harness {versions}, in its own scale; after ± its standard error over the questions."
    )
    return f"{words} {cut:,} of {prompts:,} prompts did not fit the model and lost their beginning." if cut else words
