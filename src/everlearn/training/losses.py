"""Cross-entropy on answer tokens without the logits of a whole batch.

With a vocabulary of 32,000 the logits of one batch are far larger than the model's activations. Here the output
head sees only hidden states that predict an answer token, a block of them at a time; the gradient with respect to
the hidden states (and to the head, where it is trained) is computed together with the loss, so no logits outlive
their block. Same value and gradient as `torch.nn.functional.cross_entropy` on `head(hidden).float()`.

The divergence from another view of the model is computed in the same way, from the states of both views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Module
from torch.nn.functional import log_softmax, softmax

BLOCK_ELEMENTS = {"cpu": 1 << 22}
"""Logits held at once, by kind of device. On a CPU 16 MiB in float32: stays near the processor's caches; measured no
slower than larger ones."""
BLOCK_ELEMENTS_ELSEWHERE = 1 << 26
"""256 MiB in float32. Each block reads the whole head twice, and with 1 << 22 it would be for 27 positions of a
vocabulary of 152,000; chosen so that a matrix product over a block is bound by arithmetic and not by memory."""

Head = tuple[Tensor, Tensor | None]
"""Weight, (vocabulary, width), and bias of an output head."""
Terms = Callable[[Tensor, Tensor], Tensor]
"""Logits of two views, (block, vocabulary) in float32, to a term for each place, (block,)."""
Match = Callable[..., Tensor]
"""Logits, (block, vocabulary) in float32, and what was kept of others at the same places, to a term for each."""


def head_of(module: Any) -> Head:
    """Weight and bias of a linear head as they are now, without gradient, whatever becomes of the module's."""
    return module.weight.detach(), None if module.bias is None else module.bias.detach()


def answer_cross_entropy(
    hidden: Tensor, head: Module, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the targets under `head(hidden)`.

    Args:
        hidden: States that predict the targets, (count, width).
        head: A linear layer, (vocabulary, width).
        targets: Token ids, (count,).
        weights: Factor of each target's term, (count,); None: 1.

    Returns:
        The (weighted) sum, a scalar in float32, and each target's own term without its weight, detached, (count,).
    """
    total, each, _ = cross_entropy_and_logits(hidden, head, targets, weights)
    return total, each


def cross_entropy_and_logits(
    hidden: Tensor, head: Module, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `answer_cross_entropy`, and the logits, (count, vocabulary) in float32, detached; None: more than a block."""
    total, each, logits = _BlockwiseCrossEntropy.apply(hidden, head.weight, head.bias, targets, weights)
    return total, each, logits


class _BlockwiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, factors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)  # zeros in the size of the logits
        device = hidden.device.type
        dtype = _computed_in(weight)
        matrix = weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        each = hidden.new_zeros(len(targets), dtype=torch.float32)
        gradients = _Gradients(ctx, hidden, weight, bias)
        step = _block_of(weight)
        with torch.autocast(device, enabled=False):
            for start in range(0, hidden.shape[0], step):
                states = hidden[start : start + step].to(dtype)  # (block, width)
                wanted = targets[start : start + step, None]
                scores = _scores(states, matrix, bias)  # (block, vocabulary)
                terms = -log_softmax(scores, 1).gather(1, wanted)
                each[start : start + step] = terms[:, 0]
                factor = None if factors is None else factors[start : start + step, None]
                total += (terms if factor is None else factor * terms).sum()
                if not gradients.are_wanted:
                    continue
                slope = softmax(scores, 1)  # measured: faster than the exponential of what stands above
                slope.scatter_add_(1, wanted, torch.full_like(terms, -1.0))
                if factor is not None:
                    slope *= factor
                gradients.add(start, states, slope, matrix)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        if not 0 < len(hidden) <= step:
            ctx.mark_non_differentiable(each)
            return total, each, None
        ctx.mark_non_differentiable(each, scores)
        return total, each, scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias = (None if part is None else part * grad.to(part.dtype) for part in ctx.saved_tensors)
        return hidden, weight, bias, None, None


def answer_divergence(
    hidden: Tensor,
    head: Module | None,
    other: Tensor,
    other_head: Head | None,
    terms: Terms,
    logits: Tensor | None = None,
) -> Tensor:
    """Summed divergence between the predictions of two views of a model; only the first is trained.

    Args:
        hidden: States of the first view, (count, width); logits, where there is no head.
        head: Its output head; None: the states are logits.
        other: States of the other view at the same places, without gradient.
        other_head: The other view's output head.
        terms: What is summed.
        logits: Of the first view, detached, where they are there (`cross_entropy_and_logits`).

    Returns:
        The sum, a scalar in float32.
    """
    if head is None or other_head is None:
        return terms(hidden.float(), other.float()).sum()
    dtype = _computed_in(other_head[0])
    other_matrix, other_bias = other_head[0].to(dtype), other_head[1]

    def of_block(scores: Tensor, block: slice) -> Tensor:
        return terms(scores, _scores(other[block].to(dtype), other_matrix, other_bias))

    total: Tensor = _Blockwise.apply(hidden, head.weight, head.bias, of_block, logits)
    return total


class DivergenceByToken(torch.autograd.Function):
    """`everlearn.training.divergences.divergence` with its slope in closed form, which takes fewer passes over logits.

    With p, q and m as there, temperature t, of the logits in training: (p - q) / t forward; else p (g - sum p g) / t,
    g = log p - log q in reverse and (1 - beta) (log p - log m) between.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, other: Tensor, direction: str, temperature: float, beta: float) -> Tensor:
        """One value a token."""
        ctx.temperature = temperature
        scores, other = (one if temperature == 1 else one / temperature for one in (scores, other))
        log_p, log_q = log_softmax(scores, -1), log_softmax(other, -1)
        p, q = (
            softmax(one, -1) for one in (scores, other)
        )  # measured: faster than the exponentials of the logarithms
        if direction == "forward":
            ctx.save_for_backward(p.sub_(q))
            return log_q.sub_(log_p).mul_(q).sum(-1)
        if direction == "reverse":
            gap = log_p.sub_(log_q)
            each = own = (p * gap).sum(-1)
        else:
            log_m = torch.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))
            gap = log_p.sub_(log_m).mul_(1 - beta)
            own = (p * gap).sum(-1)
            each = own + beta * log_q.sub_(log_m).mul_(q).sum(-1)
        ctx.save_for_backward(gap.sub_(own[..., None]).mul_(p))
        return each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """For the logits in training alone."""
        (slope,) = ctx.saved_tensors
        return slope * (grad / ctx.temperature)[..., None], None, None, None, None


def answer_match(
    hidden: Tensor, head: Module | None, kept: Sequence[Tensor], match: Match, logits: Tensor | None = None
) -> Tensor:
    """Summed distance of logits from what was kept of others.

    Args:
        hidden: States, (count, width); logits, where there is no head.
        head: The output head over them; None: the states are logits.
        kept: At the same places, (count, ...) each.
        match: What is summed.
        logits: Of the states, detached, where they are there (`cross_entropy_and_logits`).

    Returns:
        The sum, a scalar in float32.
    """

    def of_block(scores: Tensor, block: slice) -> Tensor:
        return match(scores, *(one[block] for one in kept))

    if head is None:
        return of_block(hidden.float(), slice(None)).sum()
    total: Tensor = _Blockwise.apply(hidden, head.weight, head.bias, of_block, logits)
    return total


@torch.no_grad()
def largest_logits(hidden: Tensor, head: Module | None, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each place, and which tokens they are of.

    Args:
        hidden: States, (places, width); logits, where there is no head.
        head: The output head over them; None: the states are logits.
        count: Of a place; 0: all.

    Returns:
        Token ids, int32, and logits, float32, both (places, count).
    """
    weight, bias = (None, None) if head is None else head_of(head)
    step = 1 << 12 if weight is None else _block_of(weight)
    dtype = hidden.dtype if weight is None else _computed_in(weight)
    found = []
    for start in range(0, len(hidden), step):
        states = hidden[start : start + step].to(dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            scores = states.float() if weight is None else _scores(states, weight.to(dtype), bias)
        found.append(scores.topk(min(count or scores.shape[1], scores.shape[1]), dim=1))
    return torch.cat([top.indices for top in found]).int(), torch.cat([top.values for top in found])


class _Blockwise(torch.autograd.Function):
    """The sum of what a function of logits and their places gives, a block of places at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        of_block: Callable[[Tensor, slice], Tensor],
        logits: Tensor | None,
    ) -> Tensor:
        dtype = _computed_in(weight)
        matrix = weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        gradients = _Gradients(ctx, hidden, weight, bias)
        step = _block_of(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], step):
                states = hidden[start : start + step].to(dtype)
                scores = _scores(states, matrix, bias) if logits is None else logits[start : start + step].detach()
                with torch.enable_grad():
                    value = of_block(scores.requires_grad_(), slice(start, start + step)).sum()
                (slope,) = torch.autograd.grad(value, scores)
                total += value.detach()
                gradients.add(start, states, slope, matrix)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias = (None if part is None else part * grad.to(part.dtype) for part in ctx.saved_tensors)
        return hidden, weight, bias, None, None


class _Gradients:
    """The gradients of a sum over blocks with respect to the states and to the head, where they are wanted."""

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        self.hidden = torch.empty_like(hidden) if wants_hidden else None
        self.weight = torch.zeros_like(weight) if wants_weight else None
        self.bias = torch.zeros_like(bias) if bias is not None and wants_bias else None
        self.are_wanted = wants_hidden or wants_weight or wants_bias

    def add(self, start: int, states: Tensor, slope: Tensor, matrix: Tensor) -> None:
        """One block's: `slope` is that of its logits, (block, vocabulary), in float32."""
        if self.bias is not None:
            self.bias += slope.sum(0).to(self.bias.dtype)
        slope = slope.to(matrix.dtype)
        if self.hidden is not None:
            self.hidden[start : start + len(states)] = slope @ matrix
        if self.weight is not None:
            self.weight += slope.T @ states


def _computed_in(weight: Tensor) -> torch.dtype:
    """The number format of the logits: that of autocast, or of the head."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _block_of(weight: Tensor) -> int:
    """Positions whose logits are held at once."""
    return max(1, BLOCK_ELEMENTS.get(weight.device.type, BLOCK_ELEMENTS_ELSEWHERE) // weight.shape[0])


def _scores(states: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    logits = states @ matrix.T
    return (logits if bias is None else logits + bias.to(logits.dtype)).float()
