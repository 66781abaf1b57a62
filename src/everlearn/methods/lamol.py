"""LAMOL: the model learns to write its training rows, and rehearses what it writes of earlier tasks.

Every row, new or written, is trained in two forms in the same step: as question and answer, and whole, as text that
follows the line which asks for a row of its task:

    L = CE_answers + lambda * CE_rows        each the mean over its own tokens in the step

Before stage t the model of stage t - 1 writes ceil(gamma * N_t) rows, N_t the rows of the new task, evenly of all
earlier tasks, by sampling after the asking line alone. What has not exactly one mark between question and answer is
rejected. No row of an earlier task is kept. Source: Sun, Ho and Lee, ICLR 2020 (arXiv 1909.03329; its tables and text
from memory) and its published code (read); the text form is chosen here (`synthesis/written_form.py`), as is that a
row which training would cut is rejected.

Known of the method: gamma counts against the new task, so a large task before a small one is hardly rehearsed; and
rows of a task are written by models that were trained on written rows, so errors add up over the stages. What was
accepted is told for each stage and task. Cost: about two steps for one, and the writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from everlearn.data.instance import SYNTHETIC, Instance
from everlearn.data.mixture import OWN, Group, Mixture, shuffled
from everlearn.errors import RecipeError
from everlearn.files import read_json, read_jsonl
from everlearn.findings import Findings, Table
from everlearn.generation.protocol import Sampling
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.loading import context_length, load_tokenizer
from everlearn.synthesis.written_form import WrittenForm, parts_of, question_and_answer
from everlearn.synthesis.written_rows import Asked, fault_of, rows_a_task, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.generation.protocol import Completion
    from everlearn.recipe import TrainingConfig

PER_TASK, SHARED = "Write a row of the task {}.\n", "Write a row of a task.\n"
"""What asks for a row: chosen here."""


class LAMOLOptions(MethodOptions):
    """How much is written, how, and how strongly writing is learnt."""

    gamma: Annotated[float, Field(gt=0, le=100)] = 0.05
    """Rows written before a stage, of all earlier tasks together, as a share of the new task's rows (published code;
    the paper's tables have 0.05 and 0.2, from memory)."""
    rounded: Literal["up", "down"] = "up"
    """How that number is made whole before it is shared out (`up`: published code; `down`: zzz47zzz's)."""
    row_weight: Annotated[float, Field(gt=0)] = 0.25
    """lambda: weight of the loss of whole rows (published)."""
    asks_for: Literal["task", "any"] = "task"
    """Whether the line that asks for a row names its task (the published `TASK` tokens), or is the same for all tasks
    (its one `GEN` token): then the tasks that written rows count as are assigned in turn."""
    mark: Annotated[str, Field(min_length=1, pattern=r"^[^\s](.*[^\s])?$")] = "### Answer"
    """Stands on a line of its own between question and answer (chosen here); no row may have such a line."""
    top_k: Annotated[int, Field(ge=0)] = 20
    """Most likely tokens that are sampled from (published); 0: all."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampling (published)."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest row that is written; nothing: what training takes of prompt and answer together (published: the longest
    sequence)."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 1
    """How often rejected rows are asked for anew (published: once, so they are not replaced)."""


@register
class LAMOL(Method):
    """Learns to write its training rows, and rehearses what it writes of earlier tasks."""

    Options = LAMOLOptions
    options: LAMOLOptions
    title = "LAMOL"
    traits = frozenset({"rehearses", "synthesizes"})

    def __init__(self, options: LAMOLOptions) -> None:
        super().__init__(options)
        self._counts: dict[str, dict[str, Any]] = {}

    def check(self, facts: Facts) -> None:
        """Refuses rows that hold the mark.

        Raises:
            RecipeError: names task and row, and the option.
        """
        mark = self.options.mark
        for task in facts.stream:
            for number, row in enumerate(task.train, 1):
                if question_and_answer(f"{''.join(parts_of(row))}\n{mark}\n{row.output}", mark) is None:
                    raise RecipeError(
                        f"method lamol: task {task.name}, training row {row.id or number} has a line {mark!r} of its "
                        "own, which would stand between question and answer: set mark to a line that no row has."
                    )

    def rehearsal(self, context: StageContext) -> Mixture:
        """What the last model has written of the earlier tasks, and every row once more as it is to be written."""
        stage, form = context.stage, self._form(context)
        tokenizer = load_tokenizer(context.model)
        written = self._written(context, form, tokenizer)
        rows = [(OWN, at, row) for at, row in enumerate(stage.rows)]
        rows += [(self.name, at, row) for at, row in enumerate(written)]
        fitting = [place for place in rows if form.fits(place[2], tokenizer)]
        if len(fitting) < len(rows):
            context.progress.say(
                f"stage {stage.name}: {len(rows) - len(fitting)} of {len(rows)} rows are too long to be learnt as text"
            )
        whole = Group(
            f"{self.name}/rows",
            tuple(row for _, _, row in fitting),
            weight=self.options.row_weight,
            mean="own",
            follows=tuple((group, at) for group, at, _ in fitting),
            template=form,
        )
        return Mixture((*shuffled(self.name, written).groups, *([whole] if fitting else [])))

    def findings(self, context: StageContext) -> Findings | None:
        """What became of the rows that were written before the stage."""
        if not self._counts:
            return None
        rows = [
            [task, *(counts[key] for key in ("asked", "written", "kept"))] for task, counts in self._counts.items()
        ]
        return Findings(tables={"rows written": Table(("task", "asked for", "written", "used"), rows)})

    def _form(self, context: StageContext) -> WrittenForm:
        stage, training = context.stage, context.training
        lines = {
            task.name: PER_TASK.format(task.name) if self.options.asks_for == "task" else SHARED
            for task in (*stage.seen, *stage.tasks)
        }
        limit = min(training.max_prompt_tokens + training.max_target_tokens, context_length(context.model))
        return WrittenForm(context.template, self.options.mark, lines, limit)

    def _written(self, context: StageContext, form: WrittenForm, tokenizer: PreTrainedTokenizerBase) -> list[Instance]:
        """The rows of the earlier tasks, in order of arrival."""
        self._counts, rows = {}, []
        options, stage = self.options, context.stage
        names = [task.name for task in stage.seen]
        if not names:
            return []
        each = rows_a_task(len(stage.rows), len(names), options.gamma, options.rounded)
        if not each:
            context.progress.say(
                f"stage {stage.name}: lamol has nothing written, since gamma {options.gamma:g} of {len(stage.rows)} "
                f"rows is less than one for each of {len(names)} tasks: raise method.gamma"
            )
            return []
        for of in [[name] for name in names] if options.asks_for == "task" else [names]:
            rows += self._written_of(of, each * len(of), context, form, tokenizer)
        return rows

    def _written_of(
        self,
        tasks: Sequence[str],
        count: int,
        context: StageContext,
        form: WrittenForm,
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Instance]:
        """Rows of one task, or of any."""
        options, what = self.options, tasks[0] if len(tasks) == 1 else "any task"
        prompt = form.prompt_ids(Instance("", "", "", tasks[0]), tokenizer)
        sampling = Sampling(
            max_new_tokens=options.max_new_tokens or form.limit - len(prompt),
            temperature=options.temperature,
            top_k=options.top_k,
            end_ids=form.end_ids(tokenizer),
        )
        seed = context.random_seed(f"{self.name} {what}")
        asked = Asked(what, prompt, count, sampling, options.max_attempts, seed)
        read = partial(_read, tasks=tasks, form=form, tokenizer=tokenizer, config=context.training)

        def make(folder: Path) -> None:
            write_rows(folder, asked, read, context.generator_for(context.latest()), context.progress)

        limits = {"max_prompt_tokens", "max_target_tokens"}
        inputs = {
            "model": context.latest_fingerprint,
            "tasks": list(tasks),
            "form": form.name,
            "count": count,
            "options": self.described(),
            "limits": context.training.model_dump(include=limits),
            "seed": seed,
        }
        place = context.step(f"written/{what.replace(' ', '-')}", inputs, make).path
        counts = self._counts[what] = cast("dict[str, Any]", read_json(place / "counts.json"))
        rejected = ", ".join(f"{reason} {of}" for reason, of in counts["rejected"].items())
        context.progress.say(
            f"stage {context.stage.name}: {counts['kept']} of {counts['written']} rows written of {what} are used"
            f"{f' (rejected: {rejected})' if rejected else ''}; {count} were asked for"
        )
        return [Instance.from_json(row) for row in read_jsonl(place / "kept.jsonl")]


def _read(
    completion: Completion,
    number: int,
    *,
    tasks: Sequence[str],
    form: WrittenForm,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
) -> Instance | str:
    """The row that was written, or the reason why it is none."""
    found = question_and_answer(completion.text, form.mark)
    if found is None:
        return "not exactly one mark"
    task = tasks[number % len(tasks)]
    row = Instance(found[0], "", found[1], task, SYNTHETIC, f"{task}-written-{number}")
    return fault_of(row, form.inner, tokenizer, config) or row
