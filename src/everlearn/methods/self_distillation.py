"""Self-distillation of the data: a stage trains on its answers as the model itself would put them.

Before stage t the model of stage t - 1 (or the base) is shown each question of the new task with the given answer and
writes the answer in its own words; plain training on these follows. What the model would say anyway moves it less
than a stranger's words. No row of an earlier task is needed, and nothing is kept.

Which of what is written is taken is chosen here (`synthesis/rewriting.py`), as is the wording: it must say the same
as the given answer by the task's metric, else the given answer is trained on. Rows of tasks with a closed set of
answers stay as they are: a label has no other words. Stacked with methods that keep or write rows of their own (a
memory, LAMOL), those rows have the given answers: only the stage's own rows are rewritten.
Source: three methods go by this name. This is the offline one of rewritten answers, close to Yang et al. (ACL 2024,
arXiv 2402.13669; from memory, its body could not be opened). Not here: pseudo-labels by the last model for earlier
inputs (those are what SSR trains on), and SDFT (arXiv 2601.19897), whose model samples an answer in every step of the
training, with a teacher that is shown the given one: the engine of training does not generate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field

from everlearn.data.instance import Instance, Task
from everlearn.data.mixture import Mixture
from everlearn.data.samples import LOOKED_AT, even_rows
from everlearn.files import read_json, read_jsonl
from everlearn.findings import Findings, Table
from everlearn.generation.writing import answering
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext
from everlearn.methods.registry import register


class SelfDistillationOptions(MethodOptions):
    """Who writes, and what of it is taken."""

    writer: Literal["latest", "base"] = "latest"
    """Who writes: the model that the stage before has released, or the base, which has not forgotten how to follow a
    request (chosen here)."""
    agreement: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least score, by the task's metric, of a written answer against the given one (chosen here); 0 takes any."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer that is written; nothing: twice the task's longest answer, and no longer than training takes."""


@register
class SelfDistillation(Method):
    """Trains on answers that the model has put in its own words."""

    Options = SelfDistillationOptions
    options: SelfDistillationOptions
    traits = frozenset({"rewrites own rows"})

    def __init__(self, options: SelfDistillationOptions) -> None:
        super().__init__(options)
        self._counts: dict[str, dict[str, Any]] = {}

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """Answers that are as long as those given."""
        template, tokenizer, training = context.template, facts.tokenizer, facts.training
        writings = []
        for task in context.stage.tasks:
            if task.labels:
                continue
            longest = max(len(template.target_ids(row, tokenizer)) for row in even_rows(task.train, LOOKED_AT))
            most = self.options.max_new_tokens or min(2 * longest, training.max_target_tokens)
            cut = training.max_prompt_tokens
            one = answering(task.name, task.train, template, tokenizer, most_tokens=most, most_prompt=cut)
            writings.append(one)
        return Forecast(writings=writings)

    def rehearsal(self, context: StageContext) -> Mixture:
        """The stage's own rows with the answers that are trained on."""
        self._counts = {}
        rewritten = [row for task in context.stage.tasks for row in self._rows_of(task, context)]
        return Mixture(rewritten=rewritten)

    def _rows_of(self, task: Task, context: StageContext) -> Sequence[Instance]:
        if task.labels:
            context.progress.say(f"stage {context.stage.name}: answers of {task.name} are labels and stay as given")
            return task.train
        is_latest = self.options.writer == "latest"
        options, training = self.options, context.training

        def make(folder: Path) -> None:
            from everlearn.evaluation.text_metrics import get_metric
            from everlearn.synthesis.rewriting import Rewriting, rewrite

            model = context.latest() if is_latest else context.base()
            how = Rewriting(
                context.template,
                model.tokenizer,
                training,
                model.context_length,
                options.max_new_tokens,
                get_metric(task.metric),
                100 * options.agreement,
            )
            rewrite(folder, task, how, context.generator_for(model), context.progress)

        inputs = {
            "model": context.latest_fingerprint if is_latest else context.base_fingerprint,
            "task": task.fingerprint(),
            "template": context.template.name,
            "max_target_tokens": training.max_target_tokens,
            "options": self.described(),
            **context.written_by,
        }
        place = context.step(f"rewritten/{task.name}", inputs, make, version=self.version).path
        counts = self._counts[task.name] = cast("dict[str, Any]", read_json(place / "counts.json"))
        kept = ", ".join(f"{reason} {of}" for reason, of in counts["as given"].items())
        context.progress.say(
            f"stage {context.stage.name}: {counts['rewritten']} of {counts['rows']} answers of {task.name} are "
            f"rewritten{f' (as given: {kept})' if kept else ''}"
        )
        return [Instance.from_json(row) for row in read_jsonl(place / "rows.jsonl")]

    def findings(self, context: StageContext) -> Findings | None:
        """How many answers were rewritten."""
        if not self._counts:
            return None
        rows = [[task, counts["rows"], counts["rewritten"]] for task, counts in self._counts.items()]
        return Findings(tables={"answers rewritten": Table(("task", "rows", "rewritten"), rows)})
