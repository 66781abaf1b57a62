"""Rehearsal of real rows that lie near the centres of clusters.

"KMeansSel" in arXiv 2403.01244 (spec section 8): embeddings of the inputs of all training rows of an earlier task,
K-means with 20 clusters, from each the rows nearest to its centre, as many as its share of the rows (selection as in
`everlearn.synthesis.selection`, with the published rounding). The published embedding is a sentence model's pooled
output; here the base model's mean hidden states by default. The number of clusters is free (the script's is fixed at
20, P9).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from everlearn.artifacts import StepRunner
from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance, Task
from everlearn.data.mixture import Mixture, shuffled
from everlearn.data.samples import LOOKED_AT, even_rows
from everlearn.errors import RecipeError
from everlearn.files import read_jsonl, write_jsonl
from everlearn.fingerprints import fingerprint_of
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.shares import share_of


class KMeansRehearsalOptions(MethodOptions):
    """Which rows are rehearsed."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each earlier task's training rows (published: 0.01 in the script, 0.01 and 0.1 in the paper)."""
    clusters: Annotated[int, Field(ge=1)] = 20
    """Clusters of K-means (published)."""
    embedding: str = "model"
    """`model`: mean of the base model's last hidden states; or the name of a sentence-transformers model."""


@register
class KMeansRehearsal(Method):
    """Rehearses real rows near cluster centres."""

    Options = KMeansRehearsalOptions
    options: KMeansRehearsalOptions
    title = "K-means rehearsal"
    traits = frozenset({"rehearses"})

    def check(self, facts: Facts) -> None:
        """Refuses more clusters than rows to take, and an embedding that is not installed.

        Raises:
            RecipeError: names the task and the option.
            MissingExtraError: says what to install.
        """
        if self.options.embedding != "model":
            from everlearn.models.embeddings import check_sentence_model

            check_sentence_model(self.options.embedding)
        for task in facts.stream.tasks[:-1]:
            wanted = rows_to_take(task, self.options.ratio)
            if wanted < self.options.clusters:
                raise RecipeError(
                    f"method kmeans_rehearsal: {self.options.clusters} clusters, but only {wanted} of the "
                    f"{len(task.train)} rows of task {task.name} are to be taken: lower clusters or raise ratio."
                )

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """So many rows of each earlier task, and the embedding of those of the last one."""
        seen, options = context.stage.seen, self.options
        rows = [row for task in seen for row in even_rows(task.train, rows_to_take(task, options.ratio))]
        if options.embedding != "model":
            return Forecast(shuffled(self.name, rows), unknown=[f"{self.name}: its sentence model"] if seen else [])
        return Forecast(shuffled(self.name, rows), read_tokens=sum(_tokens_of(task, facts) for task in seen[-1:]))

    def rehearsal(self, context: StageContext) -> Mixture:
        """Selected rows of each earlier task, in order of arrival."""
        rows = [
            row
            for index, task in enumerate(context.stage.seen, 1)
            for row in self._selected(task, context, context.steps_of(index))
        ]
        return shuffled("kmeans_rehearsal", rows)

    def _selected(self, task: Task, context: StageContext, step: StepRunner) -> list[Instance]:
        """The task's rows, selected once and kept with the stage that learnt it."""
        from everlearn.models.embeddings import sentence_fingerprint

        options = self.options
        is_own = options.embedding == "model"

        def make(folder: Path) -> None:
            from everlearn.models.embeddings import embed_sentences, embed_texts
            from everlearn.synthesis.selection import select_clustered

            texts = [row.input or row.instruction for row in task.train]
            with context.progress.step(f"embedding training rows of {task.name}", len(texts)) as tick:
                if is_own:
                    vectors = embed_texts(context.base(), texts, tick=tick)
                else:
                    vectors = embed_sentences(options.embedding, texts)
            wanted = rows_to_take(task, options.ratio)
            chosen = select_clustered(vectors, wanted, clusters=options.clusters, adds_up=False)
            write_jsonl(folder / "selected.jsonl", (task.train[one.index].to_json() for one in chosen))

        inputs = {
            "rows": fingerprint_of([row.to_json() for row in task.train]),
            "options": options.model_dump(mode="json"),
            "base": context.base_fingerprint if is_own else sentence_fingerprint(options.embedding),
        }
        artifact = step("rehearsal/kmeans", inputs, make)
        return [Instance.from_json(row) for row in read_jsonl(artifact.path / "selected.jsonl")]


def _tokens_of(task: Task, facts: Facts) -> int:
    """Tokens of the inputs of a task's training rows, about."""
    some = even_rows(task.train, min(len(task.train), LOOKED_AT))
    found = sum(len(plain_ids(row.input or row.instruction, facts.tokenizer)) for row in some)
    return round(found * len(task.train) / len(some))


def rows_to_take(task: Task, ratio: float) -> int:
    """M: the share of the training rows, at least one."""
    return max(1, round(share_of(ratio, len(task.train))))
