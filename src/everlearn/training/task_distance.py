"""How far a new task is from what is rehearsed, in the hidden space of a model, and the strength that follows (SERS).

    h(x)  = mean over positions of the states after the last block but one, of prompt and answer
    u(x)  = h(x) P / |h(x) P|,  P orthonormal, (width, 32), drawn by seed
    W     = mean over dimensions of mean over 20 quantiles in [0.05, 0.95] of |Q(u new) - Q(u rehearsed)|
    lambda(W) = least + (most - least) * (1 - exp(-W / scale)), within [least, most]

W is a trimmed, sliced Wasserstein distance of order 1. The farther the tasks are apart, the stronger is the pull;
alike tasks relax it. Source: SERS, NeurIPS 2025 (wording of the abstract), and its code (spec sections 6.2, 6.3).

The code pools over padding as well, in batches of two, and in bfloat16; here positions of padding count only where
they are asked for, states are in the model's own format, the rest is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick
    from everlearn.training.rows import EncodedRow

DIMENSIONS, QUANTILES, TRIMMED = 32, 20, 0.05
"""Of the projection; of each dimension; left out at each end (published)."""
AT_ONCE = 2
"""Rows of a batch where padding counts (published)."""
BATCH_TOKENS = 8192
"""Tokens computed at once on a GPU where it does not."""


def pooled(states: Tensor, lengths: Sequence[int], *, with_padding: bool) -> Tensor:
    """Mean of a row's states, (rows, width), float32.

    Args:
        states: Of rows that are padded on the right, (rows, length, width).
        lengths: Of the rows without padding.
        with_padding: Whether positions of padding count (published).
    """
    import torch

    states = states.float()
    if with_padding:
        return states.mean(dim=1)
    counts = torch.tensor(lengths, device=states.device)[:, None]
    is_of_row = torch.arange(states.shape[1], device=states.device)[None] < counts  # (rows, length)
    return (states * is_of_row[:, :, None]).sum(dim=1) / counts


def projection(width: int, seed: int) -> Tensor:
    """P: orthonormal columns, (width, 32), or fewer for a narrower model."""
    import torch

    drawn = torch.randn(width, DIMENSIONS, generator=torch.Generator().manual_seed(seed % 2**63))
    return torch.linalg.qr(drawn).Q


def projected(means: Tensor, onto: Tensor) -> Tensor:
    """u: the projections at length 1, (rows, dimensions); `means` (rows, width), `onto` (width, dimensions)."""
    import torch

    return torch.nn.functional.normalize(means @ onto.to(means), dim=-1)


def distance(new: Tensor, rehearsed: Tensor) -> float:
    """W of two sets of projected rows, (rows, dimensions) each; never negative, the same in both directions."""
    import torch

    at = torch.linspace(TRIMMED, 1 - TRIMMED, QUANTILES)
    quantiles = [torch.quantile(rows.float().cpu(), at, dim=0) for rows in (new, rehearsed)]  # (20, dimensions)
    return float((quantiles[0] - quantiles[1]).abs().mean())


def strength(found: float, *, least: float, most: float, scale: float) -> float:
    """lambda(W).

    Args:
        found: W.
        least: At W = 0.
        most: Towards which it grows.
        scale: tau, at which it has gone 63 % of the way.
    """
    value = least + (most - least) * (1 - math.exp(-found / scale))
    return min(max(value, least), most)


def distance_of_rows(
    model: LoadedModel,
    new: Sequence[EncodedRow],
    rehearsed: Sequence[EncodedRow],
    *,
    seed: int,
    with_padding: bool,
    tick: Tick | None = None,
) -> float:
    """W of two sets of training rows under a model.

    Args:
        model: That is about to be trained.
        new: Rows of the new task.
        rehearsed: Rows of earlier ones.
        seed: Of the projection.
        with_padding: See `pooled`.
        tick: Called with (rows done, rows in all).
    """
    import torch

    with torch.inference_mode():
        means: list[Tensor] = []
        for rows in (new, rehearsed):
            found = []
            for part in _means(model, rows, with_padding):
                found.append(part)
                if tick:
                    done = sum(map(len, found)) + (len(new) if means else 0)
                    tick(done, len(new) + len(rehearsed))
            means.append(torch.cat(found))
        onto = projection(means[0].shape[1], seed)
        return distance(*(projected(part, onto) for part in means))


def _means(model: LoadedModel, rows: Sequence[EncodedRow], with_padding: bool) -> Iterator[Tensor]:
    """h of some rows after others; where padding counts, in pairs as they come, else by length."""
    import torch

    from everlearn.models.batching import by_length, tokens_at_once
    from everlearn.models.features import decoder_of
    from everlearn.models.sides import Sides

    decoder, pad = decoder_of(model), int(model.tokenizer.pad_token_id or 0)
    if with_padding:
        batches = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    else:
        most, side = tokens_at_once(model.device.type, BATCH_TOKENS), Sides(model.model).of
        batches = list(by_length(rows, lambda row: len(row.ids), most, side))
    for batch in batches:
        lengths = [len(row.ids) for row in batch]
        ids = torch.full((len(batch), max(lengths)), pad, device=model.device)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(batch):
            ids[at, : lengths[at]] = torch.tensor(row.ids)
            mask[at, : lengths[at]] = 1
        seen = decoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        yield pooled(seen.hidden_states[-2], lengths, with_padding=with_padding)
