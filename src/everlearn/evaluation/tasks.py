"""A model's answers to a task's held-out instances, and their scores.

Answers are decoded greedily after exactly the training prompt, uncut, until the template's end of an answer, the
model's end token or the cap; an answer that the context would cut short is cut there. White space around an answer
is dropped (the published ROUGE-L does not see it).

Source: arXiv 2403.01244, published evaluation (spec section 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everlearn.data.instance import Task
from everlearn.errors import DataError
from everlearn.evaluation.bootstrap import mean_interval
from everlearn.evaluation.text_metrics import get_metric
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Generator, Sampling
from everlearn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate

Row = dict[str, Any]


def predict_task(
    generator: Generator,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    max_new_tokens: int,
    progress: Progress,
    metrics: Sequence[str],
    context_length: int | None = None,
) -> list[Row]:
    """Answers every evaluation instance of a task.

    Args:
        generator: Of the model to measure.
        template: How an instance becomes a prompt.
        tokenizer: The model's.
        task: Whose evaluation instances are asked.
        max_new_tokens: Longest answer, in tokens.
        progress: Where to show how far it is.
        metrics: Names from `METRICS` to score each answer with; the task's main metric is added.
        context_length: Most tokens of prompt and answer together; None leaves the check to the generator, which
            knows no names of tasks and rows.

    Returns:
        One row an instance, as in `predictions.jsonl`: id, instruction, input, gold, references, prediction,
        finish_reason, scores (metric to percent), and where the answer is a part of what was written, `written`.

    Raises:
        DataError: a prompt leaves no room for an answer; names task, row and lengths.
        RecipeError: an unknown metric.
    """
    for name in (*metrics, task.metric):
        get_metric(name)
    prompts = [template.prompt_ids(instance, tokenizer) for instance in task.evaluation]
    if context_length is not None:
        check_lengths(task, prompts, context_length)
    ends = template.end_ids(tokenizer)
    sampling = Sampling(max_new_tokens=max_new_tokens, max_length=context_length, end_ids=ends)
    with progress.step(f"answering {task.name}", len(prompts)) as tick:
        completions = generator.generate(prompts, sampling, Counted(tick).call())
    answers = [(template.answer(one.text), one.finish_reason) for (one,) in completions]
    rows = answered_rows(task, answers, metrics)
    for row, (one,) in zip(rows, completions, strict=True):
        if row["prediction"] != one.text.strip():
            row["written"] = one.text
    return rows


def answered_rows(task: Task, answers: Sequence[tuple[str, str]], metrics: Sequence[str]) -> list[Row]:
    """The rows of `predictions.jsonl`.

    Args:
        task: Whose evaluation instances were asked.
        answers: To each of them, and why it ends.
        metrics: As in `predict_task`.

    Raises:
        RecipeError: an unknown metric.
    """
    scorers = {name: get_metric(name) for name in (*metrics, task.metric)}
    rows: list[Row] = []
    for instance, (prediction, reason) in zip(task.evaluation, answers, strict=True):
        accepted = [instance.output, *instance.references]
        rows.append(
            {
                "id": instance.id,
                "instruction": instance.instruction,
                "input": instance.input,
                "gold": instance.output,
                "references": list(instance.references),
                "prediction": prediction,
                "finish_reason": reason,
                "scores": {name: scorer(prediction, accepted) for name, scorer in scorers.items()},
            }
        )
    return rows


def score_rows(
    rows: Sequence[Mapping[str, Any]], task: Task, *, samples: int, confidence: float, seed: int
) -> dict[str, object]:
    """Means over the rows, with an interval for the task's main metric.

    Returns:
        task, metric, rows, empty (answers), values (metric to mean percent), interval (low, high).
    """
    assert rows, "a task has at least one evaluation row"
    names = list(rows[0]["scores"])
    values = {name: sum(row["scores"][name] for row in rows) / len(rows) for name in names}
    main = [row["scores"][task.metric] for row in rows]
    return {
        "task": task.name,
        "metric": task.metric,
        "rows": len(rows),
        "empty": empty_answers(rows),
        "values": values,
        "interval": list(mean_interval(main, samples, confidence, seed)),
    }


def empty_answers(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many rows were answered with nothing although something was asked for."""
    return sum(not row["prediction"] and all((row["gold"], *row["references"])) for row in rows)


def check_lengths(task: Task, prompts: Sequence[Sequence[int]], context_length: int, room: int = 1) -> None:
    """Refuses prompts that leave no room for an answer.

    Args:
        task: Whose evaluation instances are asked.
        prompts: Of each.
        context_length: Of the model.
        room: Tokens of an answer: one, or those of the task's longest class.

    Raises:
        DataError: names task, row and lengths.
    """
    for place, (instance, prompt) in enumerate(zip(task.evaluation, prompts, strict=True), 1):
        if len(prompt) + room > context_length:
            answer = f" and the longest class has {room}" if room > 1 else ""
            raise DataError(
                f"task {task.name!r}, evaluation row {instance.id or place!r}: its prompt has {len(prompt)} tokens"
                f"{answer}, the model's context is {context_length}: shorten or remove the row, or take a model with "
                "a longer context."
            )
