"""A model's answers to a task's held-out instances, and their scores.

Answers are decoded greedily after exactly the training prompt and stripped of surrounding white space (spec section
10); an answer that the context would cut short is cut there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everlearn.data.instance import Task
from everlearn.evaluation.bootstrap import mean_interval
from everlearn.evaluation.text_metrics import METRICS
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
) -> list[Row]:
    """Answers every evaluation instance of a task.

    Args:
        generator: Of the model to measure.
        template: How an instance becomes a prompt.
        tokenizer: The model's.
        task: Whose evaluation instances are asked.
        max_new_tokens: Longest answer, in tokens.
        progress: Where to show how far it is.
        metrics: Names from `METRICS` to score each answer with.

    Returns:
        One row an instance, as in `predictions.jsonl`: id, instruction, input, gold, references, prediction,
        finish_reason, scores (metric to percent).
    """
    prompts = [template.prompt_ids(row, tokenizer) for row in task.evaluation]
    with progress.step(f"answering {task.name}", len(prompts)) as tick:
        completions = generator.generate(prompts, Sampling(max_new_tokens=max_new_tokens), tick)
    rows: list[Row] = []
    for instance, (completion,) in zip(task.evaluation, completions, strict=True):
        prediction = completion.text.strip()
        references = [instance.output, *instance.references]
        rows.append(
            {
                "id": instance.id,
                "instruction": instance.instruction,
                "input": instance.input,
                "gold": instance.output,
                "references": list(instance.references),
                "prediction": prediction,
                "finish_reason": completion.finish_reason,
                "scores": {name: METRICS[name](prediction, references) for name in metrics},
            }
        )
    return rows


def score_rows(
    rows: Sequence[Mapping[str, Any]], task: Task, *, samples: int, confidence: float, seed: int
) -> dict[str, object]:
    """Means over the rows, with an interval for the task's main metric.

    Returns:
        task, metric, rows, values (metric to mean percent), interval (low, high).
    """
    names = list(rows[0]["scores"])
    values = {name: sum(row["scores"][name] for row in rows) / len(rows) for name in names}
    main = [row["scores"][task.metric] for row in rows]
    return {
        "task": task.name,
        "metric": task.metric,
        "rows": len(rows),
        "values": values,
        "interval": list(mean_interval(main, samples, confidence, seed)),
    }
