"""How likely a model finds tokens: the summed loss of the scored end of each of many texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.models.batching import by_length, tokens_at_once
from everlearn.models.sides import Sides

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.crew import Crew
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick

BATCH_TOKENS = 8192
"""Tokens computed at once on a GPU."""


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a passage: its tokens, of which those from `scored_from` on are predicted."""

    passage: int
    ids: tuple[int, ...]
    scored_from: int


def window_losses(loaded: LoadedModel, windows: Sequence[Window], tick: Tick | None = None) -> list[float]:
    """The summed negative log-likelihood of each window's scored tokens, in nats.

    Args:
        loaded: The model.
        windows: None is empty.
        tick: Called with (windows read, windows in all).
    """
    vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    most = tokens_at_once(loaded.device.type, BATCH_TOKENS, vocabulary=vocabulary)
    batches = list(by_length(range(len(windows)), lambda at: len(windows[at].ids), most, Sides(loaded.model).of))
    given = [[windows[at] for at in batch] for batch in batches]
    losses = [0.0] * len(windows)
    for batch, found in zip(batches, loaded.shared_out(_losses_of_all, given, tick), strict=True):
        for at, loss in zip(batch, found, strict=True):
            losses[at] = loss
    return losses


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
