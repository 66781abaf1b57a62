"""Probing of a run: what the backbone's features tell apart before the first stage and after each one.

The states of the last prompt token are computed in one pass over the training and held-out rows of all tasks, a step
for each, and found where the same backbone was read before, by the method itself or in another run. All probes are
fitted from that pass, a step each; a stage that has left the backbone as it was has the probes of that one.
What the model answers (its heads, or the words that it writes) stands beside it in two numbers: the gap between probe
and answers after the last stage, and the slope of the probe over the stages.
Source: arXiv 2312.07887 (gap: forgetting of the classifier; slope: forgetting of the backbone).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.data.words import OUTSIDE, is_of_words, tags_of
from everlearn.evaluation import bootstrap
from everlearn.evaluation.entities import TestSet, tagged_rows
from everlearn.files import read_mapping, write_json, write_vouched
from everlearn.fingerprints import fingerprint_of
from everlearn.layout import PROBING
from everlearn.methods.base import Stage
from everlearn.models.state import ModelState
from everlearn.progress import Progress, Tick
from everlearn.recipe import Probe, Recipe
from everlearn.seeds import derive
from everlearn.store import RunStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.artifacts import StepRunner
    from everlearn.data.prompts import PromptTemplate
    from everlearn.data.word_prompts import WordTemplate
    from everlearn.evaluation.probing import Rows
    from everlearn.models.features import Part, Places
    from everlearn.runs.models_at_hand import ModelsAtHand
    from everlearn.runs.summary import Predictions

PARTS: tuple[Part, ...] = ("train", "evaluation")
DEFINITIONS = {
    "probe_gap": "Gap = mean over the tasks j learnt of p(T, j) - a(T, j): what a {probe} probe on the model's "
    "features gets right after the last stage, minus what the model itself does. What its answers have forgotten and "
    "its features have not; lower is better.",
    "probe_slope": "Slope = points a stage by which the mean of p(i, j) over all tasks j (later ones too) changes "
    "from stage i = 1 on (least squares). Negative means that the features themselves forget; higher is better.",
}


class Probing:
    """Probes of one run, stage by stage; nothing where the stream's tasks bring no classes.

    Args:
        recipe: The run's recipe, number formats decided.
        stream: All tasks.
        template: How an instance becomes a prompt.
        tokenizer: The model's.
        store: Where the steps stand.
        progress: Where to show what goes on.
        models: What opens a model.
    """

    def __init__(
        self,
        recipe: Recipe,
        stream: TaskStream,
        template: PromptTemplate,
        tokenizer: PreTrainedTokenizerBase,
        store: RunStore,
        progress: Progress,
        models: ModelsAtHand,
    ) -> None:
        self.recipe, self.stream, self.store, self.progress, self.models = recipe, stream, store, progress, models
        self.probes: list[Probe] = recipe.evaluation.probing.probes if stream.scenario else []
        self.summary: dict[str, object] | None = None
        self._template, self._tokenizer = template, tokenizer
        self._prompts: dict[tuple[str, str], tuple[str, list[list[int]], Places | None]] = {}  # with their names
        self._rows_read = ""
        self._stage_of: dict[str, int] = {}  # in which a backbone was first met, by its fingerprint
        # by stage: 100.0 where a row is right; of words the rows with their tags
        self._right: dict[int, dict[Probe, dict[str, Any]]] = {}
        self._test_set: TestSet | None = None
        if is_of_words(stream):
            samples = recipe.evaluation.bootstrap_samples
            self._test_set = TestSet(stream, samples, derive(recipe.seed, "bootstrap"))

    def stage(self, name: str, index: int, released: ModelState) -> None:
        """Probes what a stage has released.

        Args:
            name: Folder name of the stage.
            index: 1-based; 0 for what was there before.
            released: The model.
        """
        if not self.probes:
            return
        released = released.backbone
        if (known := self._stage_of.setdefault(released.fingerprint, index)) != index:
            self._right[index] = self._right[known]  # nothing but heads was trained
            return
        step = self.store.steps_below(name)
        states = self._states(name, step, released)
        for probe in self.probes:
            path = step(f"{PROBING}/{probe}", self._inputs(probe, released), self._fit_for(probe, name, states)).path
            found = read_mapping(path / "predictions.json")
            self._right.setdefault(index, {})[probe] = {
                task.name: tagged_rows(task, found[task.name], probe)
                if self._test_set
                else 100.0 * (np.array(found[task.name]) == self._labels(task, "evaluation"))
                for task in self.stream
            }

    def _states(self, name: str, step: StepRunner, released: ModelState) -> dict[tuple[str, str], Path]:
        """Where the states of all tasks' rows stand."""
        from everlearn.models.features import kept_prompt_states, task_prompts

        if not self._prompts:
            most = self.recipe.training.max_prompt_tokens
            self._prompts = {
                (task.name, part): task_prompts(task, part, self._template, self._tokenizer, most)
                for task in self.stream
                for part in PARTS
            }
            self._rows_read = fingerprint_of(
                [task.name, list(task.classes), self._labels(task, part).tolist(), *self._prompts[task.name, part][1:]]
                if self._test_set is None
                else [task.fingerprint(), *self._prompts[task.name, part][1:]]
                for task in self.stream
                for part in PARTS
            )
        found, done, total = {}, 0, sum(len(prompts) for _, prompts, _ in self._prompts.values())
        with self.progress.step(f"reading all tasks' prompts after {name}", total) as tick:
            for key, (named, prompts, places) in self._prompts.items():
                show = _from(done, total, tick)
                found[key] = kept_prompt_states(
                    step,
                    named,
                    released.fingerprint,
                    prompts,
                    lambda: self.models.open(released),
                    lambda show=show: show,  # type: ignore[misc]
                    places=places,
                )
                done += len(prompts)
        return found

    def _inputs(self, probe: Probe, released: ModelState) -> dict[str, object]:
        schedule = self.recipe.evaluation.probing.schedule if "linear" in probe else None
        return {
            "model": released.fingerprint,
            "rows": self._rows_read,
            "scenario": self.stream.scenario,
            "schedule": schedule,
            "seed": self.recipe.seed if schedule == "published" else None,
        }

    def _fit_for(self, probe: Probe, name: str, states: Mapping[tuple[str, str], Path]) -> Any:
        """What writes a probe's predictions into a folder."""
        from everlearn.evaluation.probing import fitted, predicted
        from everlearn.models.features import read_states

        schedule = self.recipe.evaluation.probing.schedule

        def make(folder: Path) -> None:
            answers, heads = {}, []
            for head, tasks in enumerate(self._heads()):
                of = f" on {tasks[0].name}" if len(tasks) < len(self.stream) else ""
                with self.progress.step(f"fitting the {_said(probe)} probe{of} after {name}") as tick:
                    seed = derive(self.recipe.seed, "probing", probe, head)
                    made = fitted(probe, self._rows(tasks, states), schedule, seed, tick)
                heads.append({"steps": made.steps, "loss": made.loss, "is_flat": made.is_flat} if made.steps else {})
                for task in tasks:
                    found = predicted(probe, made, read_states(states[task.name, "evaluation"])).tolist()
                    answers[task.name] = self._tagged(task, found) if self._test_set else found
            write_json(folder / "predictions.json", answers)
            write_json(folder / "heads.json", heads)

        return make

    def _heads(self) -> list[list[Task]]:
        """The tasks of each head."""
        if self.stream.scenario == "class_incremental":
            return [list(self.stream)]
        return [[task] for task in self.stream]

    def _rows(self, tasks: Sequence[Task], states: Mapping[tuple[str, str], Path]) -> Rows:
        from everlearn.evaluation.probing import Rows
        from everlearn.models.features import read_states

        features = np.concatenate([read_states(states[task.name, "train"]) for task in tasks])
        labels = np.concatenate([self._labels(task, "train") for task in tasks])
        return Rows(features, labels, sum(len(task.classes) for task in tasks))

    def _labels(self, task: Task, part: str) -> np.ndarray:
        """Columns of the classes of rows, or of words that have a state, in the head of the task."""
        of_head = self.stream.classes if self.stream.scenario == "class_incremental" else task.classes
        column = {name: at for at, name in enumerate(of_head)}
        rows, most = getattr(task, part), self.recipe.training.max_prompt_tokens if part == "train" else None
        if self._test_set is None:
            return np.array([column[row.output] for row in rows])
        return np.array([column[tags_of(row)[word]] for row in rows for word in self._read(row, most)])

    def _read(self, row: Instance, most: int | None = None) -> list[int]:
        """The words of a row that have a state."""
        return [word for word, _ in cast("WordTemplate", self._template).places(row, self._tokenizer, most)]

    def _tagged(self, task: Task, columns: Sequence[int]) -> list[str]:
        """The tags of the words of held-out rows, from the columns of those that have a state."""
        left, rows = iter(columns), []
        for row in task.evaluation:
            of_row = {word: self.stream.classes[next(left)] for word in self._read(row)}
            rows.append(" ".join(of_row.get(word, OUTSIDE) for word in range(len(row.words))))
        return rows

    def _on_test_set(self, answered: Mapping[str, Any], tasks: Sequence[Task]) -> tuple[float, np.ndarray]:
        """The F1 of what was answered to the rows of tasks of words, and that of each resample."""
        assert self._test_set is not None, "the rows are words"
        rows = [answered[task.name] for task in tasks]
        return self._test_set.scored(rows, tasks, tasks[-1].metric)[:2]

    def summarise(self, stages: Sequence[Stage], answered: Predictions, metrics: dict[str, object]) -> None:
        """Writes `probing.json`, and adds gap and slope to the metrics.

        Args:
            stages: The run's.
            answered: Stage index to task name to prediction rows.
            metrics: As `metrics.json`; changed in place.
        """
        measured = [stage for stage in stages if stage.index in self._right]
        if not self.probes or 0 not in self._right:
            return

        def row(probe: Probe, index: int) -> list[float]:
            right = self._right[index][probe]
            if self._test_set:
                return [self._on_test_set(right, self.stream.tasks)[0]] * len(self.stream)
            return [float(right[task.name].mean()) for task in self.stream]

        self.summary = {
            "scenario": self.stream.scenario,
            "schedule": self.recipe.evaluation.probing.schedule,
            "tasks": self.stream.names,
            "stages": [stage.name for stage in measured],
            "probes": {
                probe: {"base": row(probe, 0), "values": [row(probe, stage.index) for stage in measured]}
                for probe in self.probes
            },
        }
        write_vouched(self.store.folder / "probing.json", self.summary)
        self._add_metrics(measured, answered, metrics)

    def _add_metrics(self, measured: Sequence[Stage], answered: Predictions, metrics: dict[str, object]) -> None:
        """Gap and slope of the linear probe, or of the first one, with intervals over the held-out rows."""
        if not measured:
            return
        evaluation = self.recipe.evaluation
        probe: Probe = "linear" if "linear" in self.probes else self.probes[0]
        seed = derive(self.recipe.seed, "bootstrap")
        last, gaps, courses = measured[-1].index, [], []
        learnt = {task.name for stage in measured for task in stage.tasks}
        for task in self.stream if self._test_set is None else ():
            courses.append(np.stack([self._right[stage.index][probe][task.name] for stage in measured]))
            if task.name in learnt:
                observed = np.array([row["scores"][task.metric] for row in answered[last][task.name]])
                gaps.append((task.name, courses[-1][-1] - observed))

        def estimate(rows: Sequence[tuple[str, np.ndarray]], weights: np.ndarray | None = None) -> dict[str, object]:
            def value(means: np.ndarray) -> np.ndarray:  # (..., stages) or (...)
                return means if weights is None else means @ weights

            point = np.mean([value(values.mean(-1)) for _, values in rows])
            drawn = [
                value(bootstrap.resampled_means(values, evaluation.bootstrap_samples, derive(seed, name)))
                for name, values in rows
            ]
            low, high = bootstrap.percentile_interval(np.mean(drawn, axis=0), evaluation.confidence)
            return {"value": float(point), "low": low, "high": high}

        at = np.arange(len(measured)) - (len(measured) - 1) / 2
        weights = at / (at @ at) if len(measured) > 1 else at
        if self._test_set:
            found = self._of_words(measured, probe, answered[last], weights)
        else:
            found = {"probe_gap": estimate(gaps)}
            found["probe_slope"] = estimate(list(zip(self.stream.names, courses, strict=True)), weights)
        if len(measured) == 1:
            del found["probe_slope"]
        definitions = metrics["definitions"]
        assert isinstance(definitions, dict), "definitions are by name"
        for name, entry in found.items():
            metrics[name] = entry
            definitions[name] = DEFINITIONS[name].format(probe=_said(probe))

    def _of_words(
        self, measured: Sequence[Stage], probe: Probe, answered: Mapping[str, Any], weights: np.ndarray
    ) -> dict[str, dict[str, object]]:
        """The same of words: F1 on the test set of the tasks learnt (gap), and of all tasks (slope)."""
        learnt = [task for stage in measured for task in stage.tasks]
        by_stage = [self._right[stage.index][probe] for stage in measured]
        pairs = [self._on_test_set(rows, learnt) for rows in (by_stage[-1], answered)]
        courses = [self._on_test_set(rows, self.stream.tasks) for rows in by_stage]
        gap = (pairs[0][0] - pairs[1][0], pairs[0][1] - pairs[1][1])
        slope = (weights @ [value for value, _ in courses], weights @ np.stack([drawn for _, drawn in courses]))
        found: dict[str, dict[str, object]] = {}
        for name, (value, drawn) in (("probe_gap", gap), ("probe_slope", slope)):
            low, high = bootstrap.percentile_interval(drawn, self.recipe.evaluation.confidence)
            found[name] = {"value": float(value), "low": low, "high": high}
        return found


def _said(probe: Probe) -> str:
    return probe.replace("_", " ")


def _from(done: int, total: int, tick: Tick) -> Tick:
    """Shows a part of a pass as part of the whole."""
    return lambda part, of=None, note="", **more: tick(done + part, total, note, **more)
