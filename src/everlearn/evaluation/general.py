"""What a model could do before: perplexity on general text, and few-shot micro-tasks of the embedded base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everlearn.data.control_tokens import plain_ids
from everlearn.data.prompts import bos_ids
from everlearn.evaluation.bootstrap import mean_interval, percentile_interval, resampled_means
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Generator, Sampling
from everlearn.models.batching import by_length, tokens_at_once
from everlearn.models.sides import Sides

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from everlearn.crew import Crew
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick

WINDOW_TOKENS = 1024
"""Longest window; chosen here, so that models with different contexts see as much."""
BATCH_TOKENS = 8192
"""Tokens computed at once on a GPU."""
SPARE_TOKENS = 4
"""Tokens beyond the longest gold answer; an answer that needs more is wrong already."""
SEED = 0
"""Of the resampling behind intervals."""


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a passage: its tokens, of which those from `scored_from` on are predicted."""

    passage: int
    ids: tuple[int, ...]
    scored_from: int


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
    width = min(WINDOW_TOKENS, loaded.context_length)
    losses = np.zeros(len(passages))
    counts = np.zeros(len(passages))
    windows = [window for at, ids in enumerate(passages) for window in _windows(at, ids, width)]
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    most = tokens_at_once(loaded.device.type, BATCH_TOKENS, vocabulary=vocabulary)
    batches = list(by_length(windows, lambda window: len(window.ids), most, Sides(loaded.model).of))
    for batch, found in zip(batches, loaded.shared_out(_losses_of_all, batches, tick), strict=True):
        for window, loss in zip(batch, found, strict=True):
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
    prompts = _prompts(tokenizer, items)
    sampling = Sampling(max_new_tokens=_answer_room(tokenizer, items), stop=("\n\n",))
    completions = generator.generate(prompts, sampling, Counted(tick, len(prompts)).call() if tick else None)
    scores: dict[str, list[float]] = {}
    for item, (completion,) in zip(items, completions, strict=True):
        right = completion.text.strip() == item["answer"].strip()
        scores.setdefault(item["family"], []).append(100.0 * right)

    def share(values: Sequence[float]) -> dict[str, object]:
        interval = list(mean_interval(values, samples, confidence, SEED))
        return {"value": sum(values) / len(values), "rows": len(values), "interval": interval}

    families = {family: share(values) for family, values in sorted(scores.items())}
    return {**share([score for values in scores.values() for score in values]), "families": families}


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


def _losses_of_all(
    loaded: LoadedModel, batches: Sequence[Sequence[Window]], crew: Crew, tick: Tick | None
) -> list[list[float]]:
    """Of each batch; each process computes some of them."""
    read, windows = 0, sum(len(batch) for batch in batches)

    def losses(batch: Sequence[Window]) -> list[float]:
        nonlocal read
        if tick:
            tick(min(read * crew.count, windows), windows)
        read += len(batch)
        return _losses(loaded, batch)

    return crew.share(batches, losses)


def _losses(loaded: LoadedModel, batch: Sequence[Window]) -> list[float]:
    """Summed negative log-likelihood of each window's scored tokens."""
    import torch

    longest = len(batch[0].ids)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, -100)
    for row, window in enumerate(batch):
        tokens = torch.tensor(window.ids)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        targets[row, window.scored_from : len(tokens)] = tokens[window.scored_from :]
    loaded.model.eval()
    with torch.inference_mode():
        output = loaded.model(input_ids=ids.to(loaded.device), attention_mask=mask.to(loaded.device), use_cache=False)
        rows = zip(output.logits[:, -longest:], targets.to(loaded.device), strict=True)
        return [_row_loss(logits, wanted) for logits, wanted in rows]


def _row_loss(logits: Tensor, targets: Tensor) -> float:
    """(length, vocabulary) and (length,): each position predicts the next one's token."""
    from torch.nn.functional import cross_entropy

    return float(cross_entropy(logits[:-1].float(), targets[1:], reduction="sum"))
