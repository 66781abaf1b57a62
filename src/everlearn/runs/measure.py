"""What a run measures after each stage, and what it makes of it in the end.

One step per task and model state (so a prediction is never made twice), one for the general ability; from them the
accuracy matrix and the continual metrics, rewritten after every stage so that an unfinished run can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.data.instance import Task, TaskStream
from everlearn.errors import RecipeError, unknown
from everlearn.files import read_jsonl, read_mapping, write_json, write_jsonl, write_vouched
from everlearn.fingerprints import fingerprint_of
from everlearn.methods.base import Stage
from everlearn.progress import Progress
from everlearn.recipe import EMBEDDED, Recipe
from everlearn.seeds import derive
from everlearn.store import RunStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Generator
    from everlearn.models.loading import LoadedModel

METRIC_NAMES = ("rouge_l", "rouge_l_word", "exact_match", "accuracy", "token_f1")


def check_measurement(
    recipe: Recipe, stream: TaskStream, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, context: int
) -> None:
    """Refuses what could not be measured, before any training.

    Raises:
        RecipeError: a task's metric is unknown.
        DataError: an evaluation prompt fills the model's context (names task, row, its length and the context), or
            the general text cannot be read.
    """
    from everlearn.data.general import general_passages
    from everlearn.evaluation.tasks import check_lengths
    from everlearn.evaluation.text_metrics import METRICS

    for task in stream:
        if task.metric not in METRICS:
            raise RecipeError(f"task {task.name}: {unknown('metric', task.metric, METRICS)}")
        check_lengths(task, [template.prompt_ids(row, tokenizer) for row in task.evaluation], context)
    if recipe.evaluation.general_text:
        general_passages(recipe.evaluation.general_text)


class Measurement:
    """Scores of one run, stage by stage.

    Args:
        recipe: The run's recipe.
        stream: All tasks.
        stages: The run's stages.
        template: How an instance becomes a prompt.
        store: Where the steps stand.
        progress: Where to show what goes on.
        generator_for: The generation engine over a loaded model.
    """

    def __init__(
        self,
        recipe: Recipe,
        stream: TaskStream,
        stages: Sequence[Stage],
        template: PromptTemplate,
        store: RunStore,
        progress: Progress,
        generator_for: Callable[[LoadedModel], Generator],
    ) -> None:
        self.recipe = recipe
        self.stream = stream
        self.stages = stages
        self.template = template
        self.store = store
        self.progress = progress
        self.generator_for = generator_for
        self._rows: dict[int, dict[str, list[dict[str, Any]]]] = {}
        self._scores: dict[int, dict[str, dict[str, Any]]] = {}
        self._general: dict[int, dict[str, Any]] = {}

    def stage(
        self,
        name: str,
        index: int,
        model: Callable[[], LoadedModel],
        model_fingerprint: str,
        tasks: Sequence[Task],
    ) -> None:
        """Measures one model state on the given tasks and in general, and rewrites the summaries."""
        step = self.store.steps_below(name)
        generators: list[Generator] = []

        def generator(loaded: LoadedModel) -> Generator:
            if not generators:
                generators.append(self.generator_for(loaded))
            return generators[0]

        self._rows[index], self._scores[index] = {}, {}
        for task in tasks:
            artifact = step(
                f"predictions/{task.name}",
                self._prediction_inputs(task, model_fingerprint),
                lambda folder, task=task: self._predict(folder, task, model(), generator),  # type: ignore[misc]
            )
            self._rows[index][task.name] = list(read_jsonl(artifact.path / "predictions.jsonl"))
            self._scores[index][task.name] = read_mapping(artifact.path / "scores.json")
        if self.recipe.evaluation.general:
            artifact = step(
                "general",
                {"model": model_fingerprint, **self._general_inputs()},
                lambda folder: self._measure_general(folder, name, model(), generator),
            )
            self._general[index] = read_mapping(artifact.path / "scores.json")
        write_json(
            self.store.folder / "stages" / name / "scores.json",
            {
                "stage": index,
                "name": name,
                "tasks": self._scores[index],
                "general": self._general.get(index, {}),
            },
        )
        self._summarise()

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
        return f"after {stage.name}: " + "  ".join(cells) + told

    def finish(self) -> tuple[dict[str, object], dict[str, object]]:
        """The matrix and the metrics as written."""
        return self._summarise()

    def _prediction_inputs(self, task: Task, model_fingerprint: str) -> dict[str, object]:
        evaluation = self.recipe.evaluation
        return {
            "model": model_fingerprint,
            "rows": fingerprint_of([row.to_json() for row in task.evaluation]),
            "task": [task.name, task.metric, list(task.labels)],
            "template": self.template.name,
            "max_new_tokens": evaluation.max_new_tokens,
            "bootstrap": [evaluation.bootstrap_samples, evaluation.confidence, self.recipe.seed],
            "metrics": list(METRIC_NAMES),
        }

    def _predict(
        self,
        folder: Path,
        task: Task,
        loaded: LoadedModel,
        generator: Callable[[LoadedModel], Generator],
    ) -> None:
        from everlearn.evaluation.tasks import predict_task, score_rows

        evaluation = self.recipe.evaluation
        rows = predict_task(
            generator(loaded),
            self.template,
            loaded.tokenizer,
            task,
            max_new_tokens=evaluation.max_new_tokens,
            progress=self.progress,
            metrics=METRIC_NAMES,
            context_length=loaded.context_length,
        )
        write_jsonl(folder / "predictions.jsonl", rows)
        scores = score_rows(
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
        return {
            "text": fingerprint_of(content),
            "base": self.recipe.model.base == EMBEDDED,
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
        generator: Callable[[LoadedModel], Generator],
    ) -> None:
        from everlearn.data.general import general_passages
        from everlearn.evaluation.general import microtask_accuracy, perplexity

        embedded = self.recipe.model.base == EMBEDDED
        with self.progress.step(f"reading general text after {stage_name}") as tick:
            passages = general_passages(self.recipe.evaluation.general_text, embedded=embedded)
            scores: dict[str, object] = {"perplexity": perplexity(loaded, passages, tick=tick, **self._level())}
        if embedded:
            from everlearn.data.embedded.corpus import held_out_microtasks

            with self.progress.step(f"answering micro-tasks after {stage_name}") as tick:
                scores["microtasks"] = microtask_accuracy(
                    generator(loaded), loaded.tokenizer, held_out_microtasks(), tick, **self._level()
                )
        write_json(folder / "scores.json", scores)

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
        write_vouched(self.store.folder / "matrix.json", matrix)
        write_vouched(self.store.folder / "metrics.json", metrics)
        self.store.vouch_for_rows()
        return matrix, metrics
