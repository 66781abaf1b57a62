"""What methods that rehearse synthetic rows have in common: a set for each task, made once and never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance
from everlearn.data.mixture import Mixture, shuffled
from everlearn.data.samples import LOOKED_AT, even_rows
from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.synthesis.options import SynthesisOptions, resolve, rows_asked_for, selection_of

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Task
    from everlearn.generation.writing import Writing
    from everlearn.synthesis.pipeline import Synthesis, Tools


class SynthesizingOptions(SynthesisOptions, MethodOptions):
    """The options of a synthesis as those of a method."""


class Synthesizing(Method):
    """Rehearses what the models write about earlier tasks."""

    options: SynthesizingOptions
    traits = frozenset({"rehearses", "synthesizes"})

    def __init__(self, options: MethodOptions) -> None:
        super().__init__(options)
        self._sets: dict[str, list[Instance]] = {}

    def check(self, facts: Facts) -> None:
        """Refuses what the writer cannot use, clusters without rows, a missing embedding.

        Raises:
            UserError: names the task, the option or the lengths, and the remedy.
        """
        options = self.options
        if options.embedding != "model" and options.selection != "random":
            from everlearn.models.embeddings import check_sentence_model

            check_sentence_model(options.embedding)
        for task in facts.stream.tasks[:-1]:
            settings = resolve(options, rows_asked_for(options.ratio, len(task.train)))
            writer = options.writer(task, settings, is_refined=options.is_refined(has_latest=True))
            if settings.is_clustered and settings.clusters > settings.count:
                raise RecipeError(
                    f"method {self.name}: {settings.clusters} clusters, but only {settings.count} synthetic rows are "
                    f"asked for task {task.name} ({options.ratio:g} of its {len(task.train)} rows): lower clusters, "
                    "raise ratio, or use preset: improved."
                )
            writer.check_room(facts.tokenizer, facts.context_length)

    def try_base(self, context: StageContext) -> None:
        """Lets the base model write its first continuations, before hours of training.

        Raises:
            UserError: they are of no use; names the task, what was written instead and the remedies.
        """
        from everlearn.synthesis.pipeline import try_base

        if not context.stage.is_last:
            for task in context.stage.tasks:
                try_base(task, self.options, _tools(context))

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """Real rows in the place of those to come; what is written of the stage's tasks, and read to choose of it."""
        stage, options = context.stage, self.options
        rows = [
            row for task in stage.seen for row in even_rows(task.train, rows_asked_for(options.ratio, len(task.train)))
        ]
        writings = [one for task in stage.tasks if not stage.is_last for one in self.written(task, context, facts)]
        candidates = writings[0].completions if writings else 0
        is_read = options.embedding == "model" and selection_of(options) in ("kmeans", "drawn", "supervised")
        length = mean_tokens(stage.rows, facts.tokenizer) if is_read and candidates else 0.0
        return Forecast(shuffled(self.name, rows), writings, round(candidates * length))

    def written(self, task: Task, context: StageContext, facts: Facts) -> list[Writing]:
        """What the base writes of a task, and what the latest model then answers."""
        from everlearn.generation.writing import Writing, answering

        options, tokenizer, training = self.options, facts.tokenizer, facts.training
        settings = resolve(options, rows_asked_for(options.ratio, len(task.train)))
        is_refined = options.is_refined(has_latest=True)
        writer = options.writer(task, settings, is_refined=is_refined)
        prompts = writer.prompts(tokenizer, facts.context_length, context.seed)
        ids = [writer.prompt_ids(prompt, tokenizer) for prompt in prompts]
        raw = Writing(f"synthesis of {task.name}", ids, len(ids), writer.sampling(tokenizer), by_base=True)
        if not is_refined:
            return [raw]
        longest = max(len(plain_ids(row.output, tokenizer)) for row in task.demonstrations)
        most = options.refinement_tokens or (2 * (1 + longest) if settings.is_improved else options.max_length)
        answers = answering(
            task.name,
            task.train,
            context.template,
            tokenizer,
            most_tokens=most,
            most_prompt=training.max_prompt_tokens,
            count=min(settings.wanted, raw.completions),
        )
        return [raw, answers]

    def rehearsal(self, context: StageContext) -> Mixture:
        """The sets of all earlier tasks, in order of arrival."""
        return shuffled(self.name, self.rehearsed(context))

    def rehearsed(self, context: StageContext) -> list[Instance]:
        """The rows of all sets made so far."""
        return [row for task in context.stage.seen for row in self._sets[task.name]]

    def after_stage(self, context: StageContext) -> None:
        """Makes the set of each task that the stage has learnt."""
        from everlearn.synthesis.pipeline import synthesize_task

        if not context.stage.is_last:
            for task in context.stage.tasks:
                made = synthesize_task(task, self.options, _tools(context))
                self._sets[task.name] = list(made.rows)
                self.note(context, made)

    def note(self, context: StageContext, made: Synthesis) -> None:
        """What a method keeps of how a set was made, beside its rows."""

    def state_json(self) -> dict[str, object]:
        """The rows of every set, by task in order of arrival."""
        return {task: [row.to_json() for row in rows] for task, rows in self._sets.items()}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes the sets back."""
        self._sets = {task: [Instance.from_json(row) for row in _rows(rows)] for task, rows in values.items()}


def _tools(context: StageContext) -> Tools:
    from everlearn.synthesis.pipeline import Tools

    return Tools(
        step=context.step,
        base=context.base,
        base_fingerprint=context.base_fingerprint,
        generator_for=context.generator_for,
        template=context.template,
        training=context.training,
        progress=context.progress,
        seed=context.seed,
        latest=context.latest,
        latest_fingerprint=context.latest_fingerprint,
        written_by=context.written_by,
    )


def mean_tokens(rows: Sequence[Instance], tokenizer: PreTrainedTokenizerBase) -> float:
    """Of the queries of rows, about."""
    some = even_rows(rows, min(len(rows), LOOKED_AT))
    return sum(len(plain_ids(row.query, tokenizer)) for row in some) / len(some)


def _rows(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list), "a set of rows is a list"
    return value
