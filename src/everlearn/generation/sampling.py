"""From next-token logits to next tokens: penalty, temperature, top-k, top-p and the draw.

The order and the meaning of the four settings are those of Transformers' `generate` (its logits processors), so
that published settings carry over. The draw is different on purpose: every completion has a stream of uniform
numbers of its own, keyed by (seed, prompt, sample), and picks its token by the inverse of the cumulative
distribution. What a row becomes therefore does not depend on which rows share its batch.

A sort of the whole vocabulary costs more than the model's step when the model is small. Only the most likely
`CANDIDATES` tokens are sorted; a row whose nucleus does not fit into them is sorted whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from everlearn.generation.protocol import Sampling

CANDIDATES = 128
"""Tokens sorted before looking for the nucleus; chosen here: large enough that a second look is rare."""

BLOCK = 64
"""Uniform numbers drawn at once for one row; chosen here: hides numpy's cost per call."""


class UniformStream:
    """The uniform numbers in [0, 1) of one completion, from a counter-based generator (Philox)."""

    def __init__(self, seed: int, prompt: int, sample: int) -> None:
        key = np.array([seed % 2**64, (prompt << 32) + sample], dtype=np.uint64)
        self._generator = np.random.Generator(np.random.Philox(key=key))
        self._block: list[float] = []

    def next(self) -> float:
        """The next number."""
        if not self._block:
            self._block = self._generator.random(BLOCK, dtype=np.float32)[::-1].tolist()
        return self._block.pop()


def choose(
    logits: Tensor, sampling: Sampling, history: Tensor | None = None, uniforms: Sequence[float] | None = None
) -> Tensor:
    """Picks one token for each row.

    Args:
        logits: (rows, vocabulary), any float type; changed in place where a repetition penalty is set.
        sampling: How to decode.
        history: (rows, any length) token ids seen so far, needed by a repetition penalty; a short row is filled up
            by repeating one of its own ids.
        uniforms: One number in [0, 1) for each row, needed where the temperature is above 0.

    Returns:
        (rows,) token ids.
    """
    if sampling.repetition_penalty != 1.0:
        assert history is not None, "a repetition penalty needs the tokens seen so far"
        penalize_repetition(logits, history, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1)
    assert uniforms is not None, "sampling needs uniform numbers"
    drawn = torch.tensor(uniforms, dtype=torch.float32, device=logits.device)
    logits = logits.float() / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p >= 1.0:
        return _invert(logits.softmax(dim=-1), drawn)
    probabilities, ids = nucleus(logits, sampling.top_k, sampling.top_p)
    return ids.gather(1, _invert(probabilities, drawn)[:, None])[:, 0]


def penalize_repetition(logits: Tensor, history: Tensor, penalty: float) -> None:
    """Divides positive logits of seen tokens by the penalty and multiplies negative ones by it, in place.

    Source: arXiv 1909.05858, section 4.1, in the form of Transformers' RepetitionPenaltyLogitsProcessor.
    """
    seen = logits.gather(1, history)
    logits.scatter_(1, history, torch.where(seen < 0, seen * penalty, seen / penalty))


def nucleus(logits: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The tokens that top-k and top-p leave, most likely first.

    Args:
        logits: (rows, vocabulary) after penalty and temperature, float32.
        top_k: Tokens kept; 0 keeps all.
        top_p: Nucleus mass kept of what top-k left, in (0, 1].

    Returns:
        Probabilities (rows, candidates), 0 for tokens outside (not normalised again), and their token ids.
    """
    vocabulary = logits.shape[-1]
    count = min(top_k or CANDIDATES, vocabulary)
    values, ids = top_candidates(logits, count)
    if top_k:
        probabilities = values.softmax(dim=-1)
    else:
        probabilities = (values - logits.logsumexp(dim=-1, keepdim=True)).exp()
        if count < vocabulary and bool((probabilities.sum(dim=-1) < top_p).any()):
            values, ids = logits.sort(dim=-1, descending=True)
            probabilities = values.softmax(dim=-1)
    if top_p < 1.0:
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = before >= top_p
        outside[:, 0] = False
        probabilities = probabilities.masked_fill(outside, 0.0)
    return probabilities, ids


def top_candidates(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`torch.topk`, most likely first, in two stages where the vocabulary is large.

    The `count` largest of all lie in the `count` groups with the largest maxima, and a maximum of groups is much
    cheaper than a partial sort of the vocabulary.
    """
    rows, vocabulary = logits.shape
    width = 16
    groups = vocabulary // width
    if groups < 4 * count:
        top = logits.topk(count, dim=-1)
        return top.values, top.indices
    whole = logits[:, : groups * width].view(rows, groups, width)
    best = whole.amax(dim=-1).topk(count, dim=-1, sorted=False).indices  # (rows, count)
    held = whole.gather(1, best[:, :, None].expand(-1, -1, width)).view(rows, count * width)
    ids = (best[:, :, None] * width + torch.arange(width, device=logits.device)).view(rows, count * width)
    if groups * width < vocabulary:
        rest = torch.arange(groups * width, vocabulary, device=logits.device).expand(rows, -1)
        held, ids = torch.cat([held, logits[:, groups * width :]], dim=-1), torch.cat([ids, rest], dim=-1)
    top = held.topk(count, dim=-1)
    return top.values, ids.gather(1, top.indices)


def _invert(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """(rows, candidates) masses and (rows,) uniform numbers to (rows,) positions, never one without mass."""
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    position = (cumulative <= uniforms[:, None] * total).sum(dim=-1)
    last = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(dim=-1)
    return torch.minimum(position, last)
