"""What a model could do before: perplexity on general text, and few-shot micro-tasks of the embedded base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from everlearn.data.control_tokens import plain_ids
from everlearn.data.prompts import bos_ids
from everlearn.evaluation.bootstrap import mean_interval, percentile_interval, resampled_means
from everlearn.evaluation.likelihood import Window, window_losses
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Generator, Sampling
from everlearn.generation.writing import Writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick

WINDOW_TOKENS = 1024
"""Longest window; chosen here, so that models with different contexts see as much."""
SPARE_TOKENS = 4
"""Tokens beyond the longest gold answer; an answer that needs more is wrong already."""
SEED = 0
"""Of the resampling behind intervals."""


def perplexity(
    loaded: LoadedModel,
    texts: Sequence[str],
    *,
    samples: int = 1000,
    confidence: float = 0.95,
    tick: Tick | None = None,
) -> dict[str, object]:
    """exp of the mean negative log-likelihood per token over all passages.

    A passage begins with BOS where the tokenizer begins texts so (else its first token is given and not scored) and
    has no end token. One that is longer than the window (the context, at most 1,024 tokens) is read in windows that
    overlap by half: every token is predicted once, with at least half a window before it wherever there is that much.

    Args:
        loaded: The model.
        texts: Passages, each on its own.
        samples: Resamples behind the interval.
        confidence: Level of the interval.
        tick: Called with (windows read, windows in all).

    Returns:
        `value`, the number of predicted `tokens`, and `interval` (bootstrap over passages). The value is NaN
        or infinite when the model's logits are.
    """
    passages = _passages(texts, loaded.tokenizer)
    width = min(WINDOW_TOKENS, loaded.reads)
    losses = np.zeros(len(passages))
    counts = np.zeros(len(passages))
    windows = [window for at, ids in enumerate(passages) for window in _windows(at, ids, width)]
    for window, loss in zip(windows, window_losses(loaded, windows, tick), strict=True):
        losses[window.passage] += loss
        counts[window.passage] += len(window.ids) - window.scored_from
    assert counts.sum() > 0, "general text holds at least one token to predict"
    drawn = resampled_means(np.stack([losses, counts]), samples, SEED)  # (samples, 2)
    with np.errstate(over="ignore"):
        value = float(np.exp(losses.sum() / counts.sum()))
        interval = percentile_interval(np.exp(drawn[:, 0] / drawn[:, 1]), confidence)
    return {"value": value, "tokens": int(counts.sum()), "interval": list(interval)}


def microtask_accuracy(
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Mapping[str, str]],
    tick: Tick | None = None,
    *,
    samples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, object]:
    """Share of few-shot prompts that are answered exactly.

    An answer ends at a blank line, as the demonstrations do, and must equal the gold answer but for white space
    around it: punctuation and capitals are part of what these tasks ask for.

    Args:
        generator: Of the model to measure.
        tokenizer: The model's.
        items: Each with `prompt` (demonstrations and the open last one), `answer` and `family`.
        tick: Called with the number of items answered, and with the tokens written.
        samples: Resamples behind each interval.
        confidence: Level of the intervals.

    Returns:
        `value` in percent, number of `rows`, `interval` (bootstrap over items), and `families`: family to its value,
        rows and interval.
    """
    assert items, "there is at least one micro-task"
    asked = microtask_answers(tokenizer, items)
    shown = Counted(tick, asked.count).call() if tick else None
    completions = generator.generate(asked.prompts, asked.sampling, shown)
    scores: dict[str, list[float]] = {}
    for item, (completion,) in zip(items, completions, strict=True):
        right = completion.text.strip() == item["answer"].strip()
        scores.setdefault(item["family"], []).append(100.0 * right)

    def share(values: Sequence[float]) -> dict[str, object]:
        interval = list(mean_interval(values, samples, confidence, SEED))
        return {"value": sum(values) / len(values), "rows": len(values), "interval": interval}

    families = {family: share(values) for family, values in sorted(scores.items())}
    return {**share([score for values in scores.values() for score in values]), "families": families}


def microtask_answers(tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, str]]) -> Writing:
    """What is written for the micro-tasks."""
    sampling = Sampling(max_new_tokens=_answer_room(tokenizer, items), stop=("\n\n",))
    return Writing("micro-tasks", _prompts(tokenizer, items), len(items), sampling, by_base=True)


def tokens_read(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int) -> int:
    """Tokens that `perplexity` reads, those of overlaps twice."""
    width = min(WINDOW_TOKENS, context)
    passages = _passages(texts, tokenizer)
    return sum(len(window.ids) for ids in passages for window in _windows(0, ids, width))


def longest_microtask(tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, str]]) -> int:
    """Tokens that the longest prompt and the longest answer take together: the context that the items need."""
    return max(map(len, _prompts(tokenizer, items))) + _answer_room(tokenizer, items)


def _prompts(tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, str]]) -> list[list[int]]:
    return [[*bos_ids(tokenizer), *plain_ids(item["prompt"], tokenizer)] for item in items]


def _answer_room(tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, str]]) -> int:
    return max(len(plain_ids(f" {item['answer']}", tokenizer)) for item in items) + SPARE_TOKENS


def _passages(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Token ids of the passages that have a token to predict."""
    bos = bos_ids(tokenizer)
    passages = [(*bos, *plain_ids(text, tokenizer)) for text in texts]
    return [ids for ids in passages if len(ids) > 1]


def _windows(passage: int, ids: tuple[int, ...], width: int) -> Iterator[Window]:
    assert width > 1, "a context of one token predicts nothing"
    step = max(1, width // 2)
    done = 1
    for start in range(0, len(ids), step):
        end = min(start + width, len(ids))
        yield Window(passage, ids[start:end], done - start)
        done = end
        if end == len(ids):
            return
