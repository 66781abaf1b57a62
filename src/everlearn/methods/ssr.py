"""Self-Synthesized Rehearsal: earlier tasks are rehearsed with instances that the model itself has written.

Huang et al., "Mitigating Catastrophic Forgetting in Large Language Models with Self-Synthesized Rehearsal", ACL 2024,
arXiv 2403.01244. After stage i, with theta(0) the base model and theta(i) the latest one:

    (x, y)  ~ theta(0) continuing prompts of K demonstrations of task i      (in-context synthesis)
    x       kept if near a cluster's centre, 10 % of the task's size          (selection)
    y'      = theta(i) answering x greedily                                   (refinement)

and every later stage t trains on d(t) and all sets made so far, simply concatenated. A set is made once, right after
its stage, and never changed. The base model writes, because tuned ones lose the ability to follow demonstrations; the
latest answers, because it has learnt the task. No real row of an earlier task is trained on again.

The steps are in `everlearn.synthesis`, as are the options: preset `faithful` is the published behaviour, `improved`
mends its pitfalls. The rows are kept as the method's state. Not here: the ablation with input-only demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from everlearn.data.instance import Instance
from everlearn.data.mixture import Mixture, shuffled
from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.synthesis.demonstrations import check_demonstrations, layout_of
from everlearn.synthesis.options import DemonstrationOptions, resolve, rows_asked_for

if TYPE_CHECKING:
    import numpy as np

    from everlearn.synthesis.pipeline import Tools


class SSROptions(DemonstrationOptions, MethodOptions):
    """The options of synthesis, as they stand."""


@register
class SSR(Method):
    """Rehearses what the models write about earlier tasks."""

    Options = SSROptions
    options: SSROptions
    traits = frozenset({"rehearses", "synthesizes"})

    def __init__(self, options: SSROptions) -> None:
        super().__init__(options)
        self._sets: dict[str, list[Instance]] = {}

    def check(self, facts: Facts) -> None:
        """Refuses demonstrations of no use or that no prompt can hold, clusters without rows, a missing embedding.

        Raises:
            UserError: names the task, the option or the lengths, and the remedy.
        """
        from everlearn.synthesis.continuations import check_room

        options = self.options
        if options.embedding != "model" and options.selection != "random":
            from everlearn.models.embeddings import check_sentence_model

            check_sentence_model(options.embedding)
        for task in facts.stream.tasks[:-1]:
            pool = task.demonstrations
            check_demonstrations(task.name, pool, options.demonstrations, options.layout)
            settings = resolve(options, rows_asked_for(options.ratio, len(task.train)))
            if settings.is_clustered and settings.clusters > settings.count:
                raise RecipeError(
                    f"method ssr: {settings.clusters} clusters, but only {settings.count} synthetic rows are asked "
                    f"for task {task.name} ({options.ratio:g} of its {len(task.train)} rows): lower clusters, raise "
                    "ratio, or use preset: improved."
                )
            layout = layout_of(pool) if options.layout == "auto" else options.layout
            check_room(task.name, pool, layout, options, settings, facts.tokenizer, facts.context_length)

    def try_base(self, context: StageContext) -> None:
        """Lets the base model write its first continuations, before hours of training.

        Raises:
            UserError: they are of no use; names the task, what was written instead and the remedies.
        """
        from everlearn.synthesis.pipeline import try_base

        if not context.stage.is_last:
            for task in context.stage.tasks:
                try_base(task, self.options, _tools(context))

    def rehearsal(self, context: StageContext) -> Mixture:
        """The sets of all earlier tasks, in order of arrival."""
        return shuffled("ssr", [row for task in context.stage.seen for row in self._sets[task.name]])

    def after_stage(self, context: StageContext) -> None:
        """Makes the set of each task that the stage has learnt."""
        from everlearn.synthesis.pipeline import synthesize_task

        if not context.stage.is_last:
            for task in context.stage.tasks:
                self._sets[task.name] = list(synthesize_task(task, self.options, _tools(context)).rows)

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
    )


def _rows(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list), "a set of rows is a list"
    return value
