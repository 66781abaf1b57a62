"""LAMOL: the model learns to write its training rows, and rehearses what it writes of earlier tasks.

Every row, new or written, is trained in two forms in the same step: as question and answer, and whole, as text that
follows the line which asks for a row of its task:

    L = CE_answers + lambda * CE_rows        each the mean over its own tokens in the step

Before stage t the model of stage t - 1 writes ceil(gamma * N_t) rows, N_t the rows of the new task, evenly of all
earlier tasks, by sampling after the asking line alone. What has not exactly one mark between question and answer is
rejected. No row of an earlier task is kept. Source: Sun, Ho and Lee, ICLR 2020 (arXiv 1909.03329; its tables and text
from memory) and its published code (read). There, tokens that the model gains ask for a row and mark its answer
(`tokens: special`, `synthesis/token_form.py`; the mark counts fivefold in CE_rows); the text form is chosen here
(`synthesis/written_form.py`), as is that a row which training would cut is rejected.

Known of the method: gamma counts against the new task, so a large task before a small one is hardly rehearsed; and
rows of a task are written by models that were trained on written rows, so errors add up over the stages. What was
accepted is told for each stage and task. Cost: about two steps for one, and the writing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from everlearn.data.instance import SYNTHETIC, Instance
from everlearn.data.mixture import OWN, Group, Mixture, shuffled
from everlearn.data.prompts import get_template
from everlearn.data.samples import even_rows
from everlearn.errors import DataError, RecipeError
from everlearn.files import read_json, read_jsonl
from everlearn.findings import Findings, Table
from everlearn.generation.protocol import Sampling
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, Stage, StageContext, Trait
from everlearn.methods.registry import register
from everlearn.models.loading import context_length, load_tokenizer
from everlearn.synthesis.token_form import ANSWER, ASKING, TokenForm, TokenTemplate, asking_token
from everlearn.synthesis.written_form import WrittenForm, parts_of, question_and_answer
from everlearn.synthesis.written_rows import Asked, fault_of, rows_a_task, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import TaskStream
    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Completion
    from everlearn.recipe import TrainingConfig
    from everlearn.training.influence import Influence

ROWS = "lamol/rows"
MARK, TAU = "### Answer", 2.0
PER_TASK, SHARED = "Write a row of the task {}.\n", "Write a row of a task.\n"
"""The line that stands before an answer, the temperature of `distillation`, what asks for a row: chosen here."""


class LAMOLOptions(MethodOptions):
    """How much is written, how, and how strongly writing is learnt."""

    gamma: Annotated[float, Field(gt=0, le=100)] = 0.05
    """Rows written before a stage, of all earlier tasks together, as a share of the new task's rows (published code;
    the paper's tables have 0.05 and 0.2, from memory)."""
    rounded: Literal["up", "down"] = "up"
    """How that number is made whole before it is shared out (`up`: published code; `down`: zzz47zzz's)."""
    row_weight: Annotated[float, Field(gt=0)] = 0.25
    """lambda: weight of the loss of whole rows (published)."""
    tokens: Literal["text", "special"] = "text"
    """What asks for a row and marks its answer: lines of text, or tokens that the model gains (published), which needs
    full tuning: an adapter does not train the embeddings of new tokens."""
    mark_weight: Annotated[int, Field(ge=1)] | None = None
    """Weight of the token that marks an answer among those of a whole row, with `tokens: special` (nothing: 5, as
    published)."""
    asks_for: Literal["task", "any"] = "task"
    """Whether the line that asks for a row names its task (the published `TASK` tokens), or is the same for all tasks
    (its one `GEN` token): then the tasks that written rows count as are assigned in turn."""
    mark: Annotated[str, Field(min_length=1, pattern=r"^[^\s](.*[^\s])?$")] | None = None
    """Stands on a line of its own between question and answer, with `tokens: text` (nothing: `### Answer`, chosen
    here); no row may have such a line."""
    top_k: Annotated[int, Field(ge=0)] = 20
    """Most likely tokens that are sampled from (published); 0: all."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the sampling (published)."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest row that is written; nothing: what training takes of prompt and answer together (published: the longest
    sequence)."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 1
    """How often rejected rows are asked for anew (published: once, so they are not replaced)."""

    distillation: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a divergence that keeps the answers to written rows near those of the model that wrote them, as LwF
    does for new rows (tau 2, with tau^2); 0: LAMOL. (zzz47zzz's LAMOL_KD has such a term, one token late.)"""

    @model_validator(mode="after")
    def _marks_of_their_form(self) -> Self:
        if self.tokens == "special" and self.mark is not None:
            raise ValueError("mark is a line of text, and tokens: special marks answers with a token: leave mark out")
        if self.tokens == "text" and self.mark_weight is not None:
            raise ValueError("mark_weight weighs a token, so it needs tokens: special: leave it out")
        return self


@register
class LAMOL(Method):
    """Learns to write its training rows, and rehearses what it writes of earlier tasks."""

    Options = LAMOLOptions
    options: LAMOLOptions
    title = "LAMOL"
    traits = frozenset({"rehearses", "synthesizes"})
    frees: ClassVar[Mapping[Trait, str]] = {"distils": "distillation to 0"}

    def __init__(self, options: LAMOLOptions) -> None:
        super().__init__(options)
        if options.distillation:
            self.traits = self.traits | {"distils"}
        self._counts: dict[str, dict[str, Any]] = {}
        self._read: PreTrainedTokenizerBase | None = None

    def _tokenizer(self, context: StageContext) -> PreTrainedTokenizerBase:
        """That of the model, read once."""
        if self._read is None:
            self._read = load_tokenizer(context.model)
        return self._read

    @property
    def _is_special(self) -> bool:
        return self.options.tokens == "special"

    @property
    def _mark(self) -> str:
        return self.options.mark or MARK

    def template(self, template: PromptTemplate) -> PromptTemplate:
        """With tokens of its own, the query and the token that asks for its answer."""
        return TokenTemplate() if self._is_special else template

    def tokens(self, stream: TaskStream) -> Sequence[str]:
        """The token that marks answers, and those that ask for rows."""
        if not self._is_special:
            return ()
        return [ANSWER, *([ASKING] if self.options.asks_for == "any" else map(asking_token, stream.names))]

    def check(self, facts: Facts) -> None:
        """Refuses rows that hold the mark, new tokens that nothing would train, and templates that cannot ask.

        Raises:
            RecipeError: names task and row, and the option.
        """
        if self._is_special and facts.model.tuning == "lora":
            raise RecipeError(
                "method lamol: tokens: special gives the model new tokens, whose embeddings an adapter does not "
                "train: set method.tokens to text, or model.tuning to full."
            )
        if self._is_special and self.options.asks_for == "task":
            for name in facts.stream.names:
                if asking_token(name) == ANSWER:
                    raise RecipeError(
                        f"method lamol: rows of task {name} would be asked for by {ANSWER}, the token that marks "
                        "answers: give the task another name, or set method.asks_for to any."
                    )
        if self._is_special:
            return
        template = get_template(facts.model.template_name, facts.tokenizer)
        try:
            template.check([Instance("A line that asks", "", "", "")])
        except DataError:
            raise RecipeError(
                f"method lamol: it asks for rows by a line of its own, which model.template {template.name} cannot "
                "word: set method.tokens to special, or model.template to classification."
            ) from None
        mark = self._mark
        for task in facts.stream:
            for number, row in enumerate(task.train, 1):
                if question_and_answer(f"{''.join(parts_of(row))}\n{mark}\n{row.output}", mark) is None:
                    raise RecipeError(
                        f"method lamol: task {task.name}, training row {row.id or number} has a line {mark!r} of its "
                        "own, which would stand between question and answer: set mark to a line that no row has."
                    )

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """Real rows in the place of those to be written, all of which are taken to be used."""
        from everlearn.generation.writing import Writing

        stage, form, tokenizer, writings = context.stage, self._form(context), facts.tokenizer, []
        each = self._each(stage)
        rows = [row for task in stage.seen for row in even_rows(task.train, each)]
        for tasks in self._asked_together(stage) if each else ():
            prompt, sampling = self._asking(tasks, form, tokenizer)
            lengths = [len(form.target_ids(row, tokenizer)) - 1 for row in rows if row.task in tasks]
            mean = sum(lengths) / len(lengths)
            writings.append(Writing(f"rows of {' or '.join(tasks)}", [prompt], len(lengths), sampling, mean))
        return Forecast(self._mixed(rows, context, form, tokenizer), writings)

    def rehearsal(self, context: StageContext) -> Mixture:
        """What the last model has written of the earlier tasks, and every row once more as it is to be written."""
        form, tokenizer = self._form(context), self._tokenizer(context)
        return self._mixed(self._written(context, form, tokenizer), context, form, tokenizer)

    def _mixed(
        self,
        written: Sequence[Instance],
        context: StageContext,
        form: WrittenForm | TokenForm,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Mixture:
        stage = context.stage
        rows = [(OWN, at, row) for at, row in enumerate(stage.rows)]
        rows += [(self.name, at, row) for at, row in enumerate(written)]
        fitting = [place for place in rows if form.fits(place[2], tokenizer)]
        if len(fitting) < len(rows):
            context.progress.say(
                f"stage {stage.name}: {len(rows) - len(fitting)} of {len(rows)} rows are too long to be learnt as text"
            )
        whole = Group(
            ROWS,
            tuple(row for _, _, row in fitting),
            weight=0.0 if self._is_special else self.options.row_weight,  # else `influences` weighs its tokens
            mean="own",
            follows=tuple((group, at) for group, at, _ in fitting),
            template=form,
        )
        return Mixture((*shuffled(self.name, written).groups, *([whole] if fitting else [])))

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The loss of whole rows, where one token of them counts more than others; the distillation."""
        from everlearn.training.divergences import Anchored, divergence
        from everlearn.training.marked_rows import MarkedRows

        options = self.options
        found: list[Influence] = []
        if self._is_special:
            mark = self._tokenizer(context).convert_tokens_to_ids(ANSWER)
            found.append(MarkedRows(ROWS, mark, options.mark_weight or 5, options.row_weight))
        if options.distillation and context.stage.seen:
            strength = options.distillation * TAU**2
            found.append(Anchored(strength, partial(divergence, temperature=TAU), group=self.name))
        return found

    def findings(self, context: StageContext) -> Findings | None:
        """What became of the rows that were written before the stage."""
        if not self._counts:
            return None
        rows = [
            [task, *(counts[key] for key in ("asked", "written", "kept"))] for task, counts in self._counts.items()
        ]
        return Findings(tables={"rows written": Table(("task", "asked for", "written", "used"), rows)})

    def _form(self, context: StageContext) -> WrittenForm | TokenForm:
        stage, training = context.stage, context.training
        names = [task.name for task in (*stage.seen, *stage.tasks)]
        limit = min(training.max_prompt_tokens + training.max_target_tokens, context_length(context.model))
        by_task = self.options.asks_for == "task"
        if self._is_special:
            asks = {name: asking_token(name) if by_task else ASKING for name in names}
            return TokenForm(TokenTemplate(), asks, limit)
        lines = {name: PER_TASK.format(name) if by_task else SHARED for name in names}
        return WrittenForm(context.template, self._mark, lines, limit)

    def _written(
        self, context: StageContext, form: WrittenForm | TokenForm, tokenizer: PreTrainedTokenizerBase
    ) -> list[Instance]:
        """The rows of the earlier tasks, in order of arrival."""
        self._counts, rows = {}, []
        stage, each = context.stage, self._each(context.stage)
        if stage.seen and not each:
            context.progress.say(
                f"stage {stage.name}: lamol has nothing written, since gamma {self.options.gamma:g} of "
                f"{len(stage.rows)} rows is less than one for each of {len(stage.seen)} tasks: raise method.gamma"
            )
        for of in self._asked_together(stage) if each else ():
            rows += self._written_of(of, each * len(of), context, form, tokenizer)
        return rows

    def _each(self, stage: Stage) -> int:
        """Rows to write of each earlier task."""
        options, tasks = self.options, len(stage.seen)
        return rows_a_task(len(stage.rows), tasks, options.gamma, options.rounded) if tasks else 0

    def _asked_together(self, stage: Stage) -> list[list[str]]:
        """The earlier tasks, those together that are asked for alike."""
        names = [task.name for task in stage.seen]
        return [[name] for name in names] if self.options.asks_for == "task" else [names]

    def _asking(
        self, tasks: Sequence[str], form: WrittenForm | TokenForm, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], Sampling]:
        """What asks for a row of these tasks, and how it is sampled."""
        options, prompt = self.options, form.prompt_ids(Instance("", "", "", tasks[0]), tokenizer)
        return prompt, Sampling(
            max_new_tokens=options.max_new_tokens or form.limit - len(prompt),
            temperature=options.temperature,
            top_k=options.top_k,
            end_ids=form.end_ids(tokenizer),
        )

    def _written_of(
        self,
        tasks: Sequence[str],
        count: int,
        context: StageContext,
        form: WrittenForm | TokenForm,
        tokenizer: PreTrainedTokenizerBase,
    ) -> list[Instance]:
        """Rows of one task, or of any."""
        what = tasks[0] if len(tasks) == 1 else "any task"
        prompt, sampling = self._asking(tasks, form, tokenizer)
        seed = context.random_seed(f"{self.name} {what}")
        asked = Asked(what, prompt, count, sampling, self.options.max_attempts, seed)
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
            **context.written_by,
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
    form: WrittenForm | TokenForm,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
) -> Instance | str:
    """The row that was written, or the reason why it is none."""
    found = form.read(completion, tokenizer)
    if found is None:
        return "not exactly one mark"
    task = tasks[number % len(tasks)]
    row = Instance(found[0], "", found[1], task, SYNTHETIC, f"{task}-written-{number}")
    return fault_of(row, form.inner, tokenizer, config) or row
