"""Rows that are longer than the recipe trains on: counted in the account of their task, or left out.

What is measured is asked whole, so evaluation prompts beyond the limit are counted too, and answers that are longer
than a model may write. Rows that a model wrote are known only when they are rehearsed; real rehearsed rows have been
counted with their task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from everlearn.data.account import PartAccount, TaskAccount
from everlearn.data.instance import SYNTHETIC, Instance, Task, TaskStream
from everlearn.data.words import holds, is_of_words, mentions
from everlearn.errors import DataError
from everlearn.training.rows import overlong

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.recipe import Recipe, TrainingConfig


def within_limits(
    recipe: Recipe,
    stream: TaskStream,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trains: bool,
) -> TaskStream:
    """The stream as it is trained on, the accounts of its tasks completed with their lengths.

    Args:
        recipe: The limits, and what is done with longer rows.
        stream: As read.
        template: How an instance becomes a prompt.
        tokenizer: Of the model.
        trains: Whether the rows are to be trained on; where not, none is counted as cut.

    Raises:
        DataError: no training row of a task, or of a class that it brings, is within the limits, and longer ones are
            to be left out.
    """
    training, written_limit = recipe.training, recipe.evaluation.max_new_tokens
    evaluating = training.model_copy(update={"max_target_tokens": written_limit + 1})  # the end token is not written
    known = {account.task: account for account in stream.accounts}
    tasks, accounts = [], []
    for task in stream:
        account = known.get(task.name) or _made_in_code(task, stream.name)
        looked_at = task.train if trains or training.too_long == "leave_out" else ()
        cut = overlong(looked_at, template, tokenizer, training)
        account.trained, account.evaluated = len(task.train), len(task.evaluation)
        account.prompt_limit, account.answer_limit = training.max_prompt_tokens, training.max_target_tokens
        longer = overlong(task.evaluation, template, tokenizer, evaluating)
        account.long_evaluation_prompts, account.long_evaluation_answers = len(longer.prompts), len(longer.answers)
        account.written_limit = written_limit
        if training.too_long == "cut":
            account.cut_prompts, account.cut_answers = len(cut.prompts), len(cut.answers)
        else:
            kept = tuple(row for at, row in enumerate(task.train) if at not in cut.prompts | cut.answers)
            account.too_long = len(task.train) - len(kept)
            of_words = is_of_words([task])
            have = mentions(kept) if of_words else Counter(row.output for row in kept)
            lost = next((name for name in (task.labels if of_words else task.classes) if not have[name]), None)
            if not kept or lost is not None:
                own = [row for row in task.train if (holds(row, [lost or ""]) if of_words else row.output == lost)]
                all_rows = own if kept else task.train
                raise DataError(
                    f"task {task.name}: all {len(all_rows)} training rows{f' of its class {lost!r}' if kept else ''} "
                    "are longer than "
                    f"training.max_prompt_tokens ({training.max_prompt_tokens:,}) or training.max_target_tokens "
                    f"({training.max_target_tokens:,}), and training.too_long leaves such rows out: raise the limits, "
                    "or set training.too_long to cut."
                )
            task = replace(task, train=kept)
        tasks.append(task)
        accounts.append(account)
    return replace(stream, tasks=tuple(tasks), accounts=tuple(accounts))


def rehearsed_within_limits(
    rows: Sequence[Instance],
    training: TrainingConfig,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[Instance], dict[str, str]]:
    """The rehearsed rows as they are trained on, and by task what becomes of written rows that are too long."""
    cut = overlong(rows, template, tokenizer, training)
    longer = {at for at in cut.prompts | cut.answers if rows[at].origin == SYNTHETIC}
    fate = "cut" if training.too_long == "cut" else "left out"
    notes = {}
    for name in dict.fromkeys(rows[at].task for at in sorted(longer)):
        of = [at for at, row in enumerate(rows) if row.task == name and row.origin == SYNTHETIC]
        notes[name] = f"{len(longer.intersection(of))} of {len(of)} rehearsed rows are too long and are {fate}."
    return [row for at, row in enumerate(rows) if training.too_long == "cut" or at not in longer], notes


def _made_in_code(task: Task, source: str) -> TaskAccount:
    """The account of a task that no file was read for."""
    sizes = {"train": len(task.train), "evaluation": len(task.evaluation)}
    parts = {name: PartAccount(source, rows=size, instances=size) for name, size in sizes.items()}
    return TaskAccount(task.name, parts, metric=task.metric)
