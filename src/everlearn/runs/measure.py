"""What a run measures after each stage, and what it makes of it in the end.

One step per task and model state (so a prediction is never made twice), one for the general ability; from them the
accuracy matrix and the continual metrics, rewritten after every stage so that an unfinished run can be read. Where
several models answer a task's rows, each answers its own in a step, and another step puts them into their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.data.words import is_of_words
from everlearn.errors import RecipeError, unknown
from everlearn.files import read_jsonl, read_mapping, write_json, write_jsonl, write_vouched
from everlearn.fingerprints import fingerprint_of
from everlearn.methods.base import Stage
from everlearn.models.state import ModelState
from everlearn.progress import Progress
from everlearn.recipe import EMBEDDED, EvaluationConfig, Recipe
from everlearn.runs.heads import BY_HEADS, States
from everlearn.runs.kept_answers import KeptAnswers
from everlearn.seeds import derive
from everlearn.store import RunStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.artifacts import StepRunner
    from everlearn.data.prompts import PromptTemplate
    from everlearn.evaluation.answering import Answerer
    from everlearn.evaluation.benchmark_tasks import Benchmark
    from everlearn.generation.protocol import Generator
    from everlearn.models.loading import LoadedModel
    from everlearn.runs.models_at_hand import ModelsAtHand
    from everlearn.runs.probing import Probing

METRIC_NAMES = ("rouge_l", "rouge_l_word", "exact_match", "accuracy", "token_f1")


def check_measurement(
    recipe: Recipe, stream: TaskStream, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, context: int
) -> None:
    """Refuses what could not be measured, before any training.

    Raises:
        RecipeError: a task's metric is unknown, or a benchmark cannot be asked.
        MissingExtraError: benchmarks are asked for, and what asks them is not installed.
        DataError: an evaluation prompt fills the model's context (names task, row, its length and the context), or
            the general text cannot be read.
    """
    from everlearn.data.general import general_passages
    from everlearn.evaluation.benchmark_tasks import find_benchmarks
    from everlearn.evaluation.entities import check_seqeval
    from everlearn.evaluation.tasks import check_lengths
    from everlearn.evaluation.text_metrics import METRICS

    of_words = is_of_words(stream)
    if of_words:
        check_seqeval()
    for task in stream:
        if not of_words and task.metric not in METRICS:
            raise RecipeError(f"task {task.name}: {unknown('metric', task.metric, METRICS)}")
        named = (Instance("", "", name, task.name) for name in task.classes) if stream.scenario else ()
        room = max((len(template.target_ids(row, tokenizer)) for row in named), default=1)
        check_lengths(task, [template.prompt_ids(row, tokenizer) for row in task.evaluation], context, room)
    if recipe.evaluation.general_text:
        general_passages(recipe.evaluation.general_text)
    find_benchmarks(recipe.evaluation, tokenizer, context)


def measured_text(recipe: Recipe) -> list[str]:
    """The passages on which the run measures perplexity; none, where it does not."""
    from everlearn.data.general import general_passages

    evaluation = recipe.evaluation
    if not evaluation.general:
        return []
    return general_passages(evaluation.general_text, embedded=recipe.model.base == EMBEDDED)


def asks_benchmarks(evaluation: EvaluationConfig, index: int, last: int) -> bool:
    """Whether the recipe's benchmarks are asked after a stage; the base (0) always is."""
    if not evaluation.general_tasks or isinstance(evaluation.general_stages, list):
        return bool(evaluation.general_tasks) and index in (0, *evaluation.general_stages)
    return index in (0, last) or evaluation.general_stages == "all"


class Measurement:
    """Scores of one run, stage by stage.

    Args:
        recipe: The run's recipe.
        stream: All tasks.
        stages: The run's stages.
        template: How an instance becomes a prompt.
        store: Where the steps stand.
        progress: Where to show what goes on.
        models: What opens a model and the generation engine over it.
        tokenizer: The model's.
        probing: What features tell apart, beside the answers; None: that is not asked.
    """

    def __init__(
        self,
        recipe: Recipe,
        stream: TaskStream,
        stages: Sequence[Stage],
        template: PromptTemplate,
        store: RunStore,
        progress: Progress,
        models: ModelsAtHand,
        tokenizer: PreTrainedTokenizerBase,
        probing: Probing | None = None,
    ) -> None:
        self.recipe = recipe
        self.stream = stream
        self.stages = stages
        self.template = template
        self.store = store
        self.progress = progress
        self.models = models
        self.tokenizer = tokenizer
        self.probing = probing
        self._rows: dict[int, dict[str, list[dict[str, Any]]]] = {}
        self._scores: dict[int, dict[str, dict[str, Any]]] = {}
        self._general: dict[int, dict[str, Any]] = {}
        self._benchmarks: dict[int, dict[str, dict[str, Any]]] = {}
        self._matrix: dict[str, Any] = {}
        self._opened: tuple[ModelState, LoadedModel, Generator] | None = None

    def stage(
        self,
        name: str,
        index: int,
        released: ModelState,
        tasks: Sequence[Task],
        answerer: Answerer | None = None,
    ) -> None:
        """Measures what stands after a stage, and rewrites the summaries.

        Rows are answered model by model, that at hand first, so that none is loaded twice.

        Args:
            name: Folder name of the stage.
            index: 1-based; 0 for what was there before.
            released: The model that the stage hands on: all rows are its own unless there is an answerer, and the
                general ability is.
            tasks: To be answered.
            answerer: Whose weights answer which row.
        """
        if is_of_words(tasks):  # by heads alone, which know the types so far
            from everlearn.models.heads import load_heads

            known = released.heads and set(load_heads(released.heads.folder).known)
            tasks = [task for task in tasks if known and set(task.classes) <= known]
        step = self.store.steps_below(name)
        named = {task.name: answerer.names_for(task.evaluation) for task in tasks} if answerer else {}
        chosen = {
            task.name: [answerer.models[model] for model in named[task.name]]
            if answerer
            else [released] * len(task.evaluation)
            for task in tasks
        }
        answered: dict[str, dict[ModelState, Path]] = {task.name: {} for task in tasks}
        for state in dict.fromkeys([released, *(state for states in chosen.values() for state in states)]):
            for task in tasks:
                own = [row for row, model in zip(task.evaluation, chosen[task.name], strict=True) if model == state]
                if not own:
                    continue
                part, place = replace(task, evaluation=tuple(own)), f"predictions/{task.name}"
                if len(own) < len(task.evaluation):
                    place = f"answers/{task.name}/{state.fingerprint[:8]}"
                answered[task.name][state] = step(
                    place,
                    self._prediction_inputs(part, state.fingerprint, answerer, by_heads=state.heads is not None),
                    lambda folder, part=part, state=state: self._predict(folder, part, state, step),  # type: ignore[misc]
                ).path
            if state == released and self.recipe.evaluation.general:
                artifact = step(
                    "general",
                    {"model": released.backbone.fingerprint, **self._general_inputs()},
                    lambda folder: self._measure_general(folder, name, *self._open(released)),
                )
                self._general[index] = read_mapping(artifact.path / "scores.json")
            if state == released:
                self._ask_benchmarks(name, index, released, step)
            if state == released and self.probing:
                self.probing.stage(name, index, released)
        self._opened = None  # so that its memory can be freed
        self._rows[index], self._scores[index] = {}, {}
        for task in tasks:
            parts = answered[task.name]
            if len(parts) == 1:
                (path,) = parts.values()
            else:
                path = step(
                    f"predictions/{task.name}",
                    self._prediction_inputs(task, [state.fingerprint for state in chosen[task.name]], answerer),
                    lambda folder, task=task, parts=parts: self._join(folder, task, chosen[task.name], parts),  # type: ignore[misc]
                ).path
            self._rows[index][task.name] = list(read_jsonl(path / "predictions.jsonl"))
            self._scores[index][task.name] = read_mapping(path / "scores.json")
        scores = {
            "stage": index,
            "name": name,
            "tasks": self._scores[index],
            "general": self._general.get(index, {}),
        }
        if index in self._benchmarks:
            scores["benchmarks"] = self._benchmarks[index]
        if answerer:
            scores["answered_by"] = {task: dict(Counter(models)) for task, models in named.items()}
        write_json(self.store.folder / "stages" / name / "scores.json", scores)
        self._summarise()

    def _open(self, state: ModelState) -> tuple[LoadedModel, Generator]:
        """A model without its heads and its engine, kept for the next step that asks for them."""
        state = state.backbone
        if self._opened is None or self._opened[0] != state:
            self._opened = None  # so that two models are never there at once
            loaded = self.models.open(state)
            self._opened = (state, loaded, self.models.generator_for(loaded))
        return self._opened[1:]

    def line(self, stage: Stage) -> str:
        """One line for the terminal: this stage's row of the matrix, and how many answers were empty."""
        from everlearn.evaluation.tasks import empty_answers

        cells, empty = [], []
        for task in self.stream:
            score = self._scores[stage.index].get(task.name)
            if score is not None:
                cells.append(f"{task.name} {score['values'][task.metric]:.1f}")
                rows = self._rows[stage.index][task.name]
                if count := empty_answers(rows):
                    empty.append(f"{task.name} {count} of {len(rows)}")
        told = f"  (empty answers: {', '.join(empty)})" if empty else ""
        if cells and is_of_words(self.stream):
            name = stage.tasks[-1].name
            whole = self._matrix["values"][-1][self._matrix["tasks"].index(name)]
            told = f"  (their own types; all types so far {whole:.1f})"
        return f"after {stage.name}: " + "  ".join(cells) + told

    def answers(self, index: int) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Rows of `predictions.jsonl` by task, after a stage."""
        return self._rows[index]

    def finish(self) -> tuple[dict[str, object], dict[str, object]]:
        """The matrix and the metrics as written."""
        return self._summarise()

    @property
    def _knows_task(self) -> bool:
        """Whether an answer is one of the classes of a row's task."""
        return self.stream.scenario == "task_incremental"

    def _prediction_inputs(
        self, task: Task, model: str | list[str], answerer: Answerer | None, *, by_heads: bool = False
    ) -> dict[str, object]:
        """Args: `model` is the fingerprint of the one that answers, or those of all rows."""
        evaluation = self.recipe.evaluation
        through = dict(answerer.inputs()) if answerer else {}
        return {
            **({"scenario": self.stream.scenario} if by_heads or self._knows_task else {}),
            **({"answerer": through} if through else {}),
            "model": model,
            "rows": fingerprint_of([row.to_json() for row in task.evaluation]),
            "task": [task.name, task.metric, list(task.labels)],
            "template": self.template.name,
            "max_new_tokens": evaluation.max_new_tokens,
            "bootstrap": [evaluation.bootstrap_samples, evaluation.confidence, self.recipe.seed],
            "metrics": list(METRIC_NAMES),
            **({} if by_heads or self._knows_task else self.models.written_by),
        }

    def _predict(self, folder: Path, task: Task, state: ModelState, step: StepRunner) -> None:
        """Answers the rows of a task, or of a part of one."""
        from everlearn.evaluation.choice import CHOSEN, choose_classes
        from everlearn.evaluation.entities import tagged_rows
        from everlearn.evaluation.tasks import answered_rows, predict_task

        if state.heads is not None:
            most = self.recipe.training.max_prompt_tokens
            states = States(step, self.template, self.tokenizer, most, self.models.open, self.progress)
            answers = states.answers(state, task, self.stream)
            if is_of_words([task]):
                self._score(folder, task, tagged_rows(task, answers, BY_HEADS))
                return
            rows = answered_rows(task, [(answer, BY_HEADS) for answer in answers], METRIC_NAMES)
            self._score(folder, task, rows)
            return
        loaded, generator = self._open(state)
        kept = None
        if self._knows_task:
            answers = choose_classes(loaded, self.template, task, self.progress)
            rows = answered_rows(task, [(answer, CHOSEN) for answer in answers], METRIC_NAMES)
        else:
            kept = KeptAnswers(generator, folder) if self.models.written_by else None
            rows = predict_task(
                kept or generator,
                self.template,
                loaded.tokenizer,
                task,
                max_new_tokens=self.recipe.evaluation.max_new_tokens,
                progress=self.progress,
                metrics=METRIC_NAMES,
                context_length=loaded.context_length,
            )
        self._score(folder, task, rows)
        if kept is not None:
            kept.forget()

    def _join(self, folder: Path, task: Task, chosen: Sequence[ModelState], parts: Mapping[ModelState, Path]) -> None:
        """Puts the answers of several models into the order of the task's rows."""
        answers = {state: iter(read_jsonl(path / "predictions.jsonl")) for state, path in parts.items()}
        self._score(folder, task, [next(answers[state]) for state in chosen])

    def _score(self, folder: Path, task: Task, rows: Sequence[dict[str, Any]]) -> None:
        from everlearn.evaluation.entities import score_task
        from everlearn.evaluation.tasks import score_rows

        evaluation = self.recipe.evaluation
        write_jsonl(folder / "predictions.jsonl", rows)
        scores = (score_task if is_of_words([task]) else score_rows)(
            rows,
            task,
            samples=evaluation.bootstrap_samples,
            confidence=evaluation.confidence,
            seed=derive(derive(self.recipe.seed, "bootstrap"), task.name),
        )
        write_json(folder / "scores.json", scores)

    def _general_inputs(self) -> dict[str, object]:
        text = self.recipe.evaluation.general_text
        content = Path(text).read_text(encoding="utf-8") if text else None
        embedded = self.recipe.model.base == EMBEDDED
        return {
            **(self.models.written_by if embedded else {}),  # the micro-tasks
            "text": fingerprint_of(content),
            "base": embedded,
            "bootstrap": self._level(),
        }

    def _level(self) -> dict[str, Any]:
        """How the intervals of general ability are made."""
        evaluation = self.recipe.evaluation
        return {"samples": evaluation.bootstrap_samples, "confidence": evaluation.confidence}

    def _measure_general(
        self,
        folder: Path,
        stage_name: str,
        loaded: LoadedModel,
        generator: Generator,
    ) -> None:
        from everlearn.evaluation.general import microtask_accuracy, perplexity

        embedded = self.recipe.model.base == EMBEDDED
        with self.progress.step(f"reading general text after {stage_name}") as tick:
            passages = measured_text(self.recipe)
            scores: dict[str, object] = {"perplexity": perplexity(loaded, passages, tick=tick, **self._level())}
        if embedded:
            from everlearn.data.embedded.corpus import held_out_microtasks

            with self.progress.step(f"answering micro-tasks after {stage_name}") as tick:
                scores["microtasks"] = microtask_accuracy(
                    generator, loaded.tokenizer, held_out_microtasks(), tick, **self._level()
                )
        write_json(folder / "scores.json", scores)

    def _ask_benchmarks(self, name: str, index: int, released: ModelState, step: StepRunner) -> None:
        """The benchmarks of the recipe, each in a step, where this stage is asked; the base always is."""
        from everlearn.evaluation.benchmark_tasks import find_benchmarks
        from everlearn.evaluation.benchmarks import measure_benchmark
        from everlearn.models.loading import context_length

        evaluation = self.recipe.evaluation
        if not asks_benchmarks(evaluation, index, self.stages[-1].index if self.stages else 0):
            return
        for benchmark in find_benchmarks(evaluation, self.tokenizer, context_length(self.recipe.model)):

            def make(folder: Path, benchmark: Benchmark = benchmark) -> None:
                loaded, _ = self._open(released)
                with self.progress.step(f"asking {benchmark.given.task} after {name}") as tick:
                    measure_benchmark(benchmark, loaded, folder, tick, chat_template=evaluation.general_chat_template)

            inputs = {"model": released.backbone.fingerprint, **benchmark.inputs}
            artifact = step(f"benchmarks/{benchmark.place}", inputs, make)
            self._benchmarks.setdefault(index, {})[benchmark.place] = read_mapping(artifact.path / "scores.json")

    def _add_f1(self, metrics: dict[str, object]) -> None:
        """Sets tasks and general ability beside each other in one number, where the latter is a share."""
        from everlearn.evaluation.continual import F1_DEFINITION, f1_average

        general = self._general.get(max(self._general, default=0), {}).get("microtasks")
        average, definitions = metrics.get("AR"), metrics["definitions"]
        assert isinstance(definitions, dict), "definitions are by name"
        if general is not None and isinstance(average, dict) and average["value"] is not None:
            value = f1_average(general["value"], average["value"])
            metrics["F1_avg"] = {"value": value, "low": None, "high": None}
            definitions["F1_avg"] = F1_DEFINITION

    def _summarise(self) -> tuple[dict[str, object], dict[str, object]]:
        from everlearn.runs.summary import summarise

        matrix, metrics = summarise(
            self.stream,
            self.stages,
            self._rows,
            samples=self.recipe.evaluation.bootstrap_samples,
            confidence=self.recipe.evaluation.confidence,
            seed=derive(self.recipe.seed, "bootstrap"),
        )
        self._add_f1(metrics)
        if self.probing:
            self.probing.summarise(self.stages, self._rows, metrics)
        self._matrix = matrix
        write_vouched(self.store.folder / "matrix.json", matrix)
        write_vouched(self.store.folder / "metrics.json", metrics)
        self.store.vouch_for_rows()
        return matrix, metrics
