"""What a recipe's data holds before anything runs: account, lengths, and its first rows as the model sees them.

Nothing is trained or written. What cannot be used is told beside what can, so that a row can be found and mended.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from everlearn.data.account import TaskAccount
from everlearn.data.seen import as_seen
from everlearn.data.words import is_of_words, mentions
from everlearn.errors import UserError
from everlearn.methods.base import Facts
from everlearn.methods.stack import assemble
from everlearn.progress import LineProgress, Progress, Tick
from everlearn.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Task
    from everlearn.data.prompts import PromptTemplate
    from everlearn.recipe import TrainingConfig


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens some texts have, and how many of the texts have more than the limit."""

    shortest: int
    median: int
    most: int
    """What 95 % of them do not exceed."""
    longest: int
    limit: int
    over: int


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A training row as the model sees it (`everlearn.data.seen`), cut where training cuts it."""

    id: str
    prompt: str
    answer: str
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class TaskInspection:
    """What is known of a task before it is trained.

    Attributes:
        account: What became of its data.
        labels: Its closed set of answers, each with the number of training rows.
        prompts: Lengths of the training prompts.
        answers: Lengths of the training answers, end token included; None where there is none.
        rows: The first training rows.
    """

    account: TaskAccount
    labels: Mapping[str, int]
    prompts: Lengths | None
    answers: Lengths | None
    rows: tuple[SeenRow, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a recipe's data holds.

    Attributes:
        model: The base whose tokenizer is used.
        template: Name of the prompt template.
        context: Tokens that the model can take in.
        tasks: Those that can be read.
        notes: Sentences on the data.
        faults: Task that cannot be read to the reason.
        refusal: Why a run would refuse the data; None where it would not.
        scenario: Of a stream whose tasks bring classes of their own; None of others.
    """

    model: str
    template: str
    context: int
    tasks: tuple[TaskInspection, ...]
    notes: tuple[str, ...]
    faults: Mapping[str, str]
    refusal: UserError | None
    scenario: str | None = None


def inspect_data(
    recipe: Recipe, *, rows: int = 2, is_whole: bool = True, progress: Progress | None = None
) -> Inspection:
    """Reads the data of a recipe as a run would.

    Args:
        recipe: What would be run.
        rows: How many rows of each task to show.
        is_whole: Whether model and method are chosen, so that data that does not fit them is refused.
        progress: Where to show what goes on.

    Raises:
        UserError: model or method cannot be used, or the recipe is wrong.
    """
    from everlearn.data.bad_rows import told
    from everlearn.data.prompts import get_template
    from everlearn.data.stream import read_stream
    from everlearn.data.word_prompts import template_name
    from everlearn.models import loading
    from everlearn.models.added_tokens import with_tokens
    from everlearn.runs.lengths import within_limits
    from everlearn.runs.measure import check_measurement, measured_text
    from everlearn.runs.prepare import refuse_unfit_scenario
    from everlearn.training.rows import check_rows

    method = assemble(recipe.method)
    tokenizer = loading.load_tokenizer(recipe.model)
    context = loading.context_length(recipe.model)
    reading = read_stream(recipe.stream, seed=recipe.seed, tokenizer=tokenizer)
    stream, refused = reading.stream, reading.refusal(recipe.stream)
    name = template_name(recipe.model.template, recipe.model.template_name, stream, tokenizer)
    template = method.template(get_template(name, tokenizer))
    if tokens := method.tokens(stream):
        tokenizer = loading.load_tokenizer(with_tokens(recipe.model, tokens))
    try:
        stream = within_limits(recipe, stream, template, tokenizer, trains=True)
        if is_whole:
            check_measurement(recipe, stream, template, tokenizer, context)
            for task in stream:
                check_rows(task.train, template, tokenizer, recipe.training, context)
            refuse_unfit_scenario(method, stream)
            method.check(
                Facts(stream, tokenizer, context, recipe.model, recipe.training, partial(measured_text, recipe))
            )
    except UserError as fault:
        refused = refused or fault
    accounts = {account.task: account for account in stream.accounts}
    tasks = []
    for task in stream:
        account = accounts.get(task.name) or TaskAccount(task.name, metric=task.metric)
        with (progress or LineProgress()).step(f"tokenizing {task.name}", len(task.train)) as tick:
            tasks.append(_inspected(task, account, recipe.training, template, tokenizer, rows, tick))
    faults = {name: str(fault) for name, fault in reading.faults.items()}
    notes = list(stream.notes)
    if reading.bad and recipe.stream.bad_rows == "tolerant":  # else they are why the data is refused
        notes.append(told(reading.bad, reading.total))
    held = (tuple(tasks), tuple(notes), faults, refused, stream.scenario)
    return Inspection(recipe.model.base, template.name, context, *held)


def _inspected(
    task: Task,
    account: TaskAccount,
    training: TrainingConfig,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    tick: Tick,
) -> TaskInspection:
    prompts, answers, rows = [], [], []
    for number, row in enumerate(task.train, 1):
        tick(number)
        try:
            prompt, answer = template.prompt_ids(row, tokenizer), template.target_ids(row, tokenizer)
        except UserError:
            continue  # a row that the template refuses, which is why the data is refused
        prompts.append(len(prompt))
        answers.append(len(answer))
        if number <= count:
            seen = template.prompt_ids(row, tokenizer, training.max_prompt_tokens)
            answer = answer[: training.max_target_tokens]
            texts = as_seen(seen, tokenizer), row.output if row.words else as_seen(answer, tokenizer)
            rows.append(SeenRow(row.id, *texts, prompts[-1], answers[-1]))
    had = mentions(task.train) if is_of_words([task]) else Counter(row.output for row in task.train)
    return TaskInspection(
        account,
        {label: had[label] for label in task.labels},
        _lengths(prompts, training.max_prompt_tokens),
        _lengths(answers, training.max_target_tokens),
        tuple(rows),
    )


def _lengths(counts: list[int], limit: int) -> Lengths | None:
    if not counts:
        return None
    order = sorted(counts)
    last = len(order) - 1
    return Lengths(
        order[0],
        order[last // 2],
        order[math.ceil(0.95 * last)],
        order[last],
        limit,
        sum(length > limit for length in order),
    )
