"""What a model could do before: perplexity on general text, and few-shot micro-tasks of the embedded base."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everlearn.evaluation.bootstrap import mean_interval
from everlearn.evaluation.text_metrics import normalised
from everlearn.generation.protocol import Generator, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.models.loading import LoadedModel

WINDOW_TOKENS = 1024
ANSWER_TOKENS = 24
INTERVAL = {"samples": 1000, "confidence": 0.95, "seed": 0}


def perplexity(loaded: LoadedModel, passages: Sequence[str], batch_tokens: int = 8192) -> dict[str, float]:
    """exp of the mean negative log-likelihood per token over all passages.

    Each passage is encoded with the tokenizer's own special tokens and cut into windows of at most the context (and
    1,024 tokens); the first token of a window is given, the others are predicted.

    Returns:
        `value`, and the number of predicted `tokens`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    width = min(WINDOW_TOKENS, loaded.context_length)
    windows = []
    for passage in passages:
        ids = loaded.tokenizer(passage)["input_ids"]
        windows += [ids[at : at + width] for at in range(0, len(ids) - 1, width - 1)]
    windows = sorted((window for window in windows if len(window) > 1), key=len)
    total, tokens = 0.0, 0
    loaded.model.eval()
    with torch.inference_mode():
        while windows:
            rows = min(len(windows), max(1, batch_tokens // len(windows[-1])))
            batch, windows = windows[-rows:], windows[:-rows]
            longest = len(batch[-1])
            ids = torch.tensor([window + [0] * (longest - len(window)) for window in batch], device=loaded.device)
            lengths = torch.tensor([len(window) for window in batch], device=loaded.device)
            mask = torch.arange(longest, device=loaded.device)[None] < lengths[:, None]  # (rows, longest)
            logits = loaded.model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].float()
            targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
            total += float(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            tokens += int(mask[:, 1:].sum())
    return {"value": math.exp(total / tokens), "tokens": tokens}


def microtask_accuracy(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, items: Sequence[Mapping[str, str]]
) -> dict[str, object]:
    """Exact match of few-shot answers.

    Args:
        generator: Of the model to measure.
        tokenizer: The model's.
        items: Each with `prompt` (demonstrations and the open last one), `answer` and `family`.

    Returns:
        `value` in percent, number of `rows`, `interval`, and `families` (family to percent).
    """
    prompts = [tokenizer(item["prompt"])["input_ids"] for item in items]
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS, stop=("\n\n",))
    completions = generator.generate(prompts, sampling)
    scores = [
        100.0 * (normalised(completion.text) == normalised(item["answer"]))
        for item, (completion,) in zip(items, completions, strict=True)
    ]
    families: dict[str, list[float]] = defaultdict(list)
    for item, score in zip(items, scores, strict=True):
        families[item["family"]].append(score)
    return {
        "value": sum(scores) / len(scores),
        "rows": len(scores),
        "interval": list(
            mean_interval(scores, int(INTERVAL["samples"]), INTERVAL["confidence"], int(INTERVAL["seed"]))
        ),
        "families": {family: sum(values) / len(values) for family, values in sorted(families.items())},
    }
