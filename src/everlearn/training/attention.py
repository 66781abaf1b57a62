"""Attention over a packed micro-batch, as an implementation that Transformers' models can switch to.

`AttentionInterface` is Transformers' public way to add one. With a `packing` among the model's keyword arguments,
tokens are spread into blocks of similar length, torch's fused attention runs on each block, and the results are
collected back; without one, it is Transformers' own fused attention. Models that hand their keyword arguments down
to attention work; `answer_loss.py` proves it on a few rows before it is relied on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from everlearn.training.packing import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "everlearn_packed"
_UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""Keyword arguments by which models cap scores, add sinks or biases."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer.

    Args:
        module: The attention layer.
        query: (1, heads, tokens, width).
        key: (1, key heads, tokens, width).
        value: Likewise.
        attention_mask: Of ordinary batches; when there is a packing, of one element, or of the model's own making.
        scaling: Of the scores.
        dropout: Rate on the attention weights.
        packing: The layout of the tokens.
        others: Passed on for ordinary batches.

    Returns:
        (1, tokens, heads, width), and no weights.

    Raises:
        ValueError: the model's attention has terms or masks that only its own implementation computes, or the model
            has not handed the packing down.
    """
    if packing is None:
        if attention_mask is not None and attention_mask.shape[-1] == 1 < query.shape[2]:
            raise ValueError(f"{type(module).__name__} gets a mask that is none, and no packing")
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return output, None
    if attention_mask is not None and attention_mask.numel() > 1:
        raise ValueError(f"{type(module).__name__} adds a mask of its own, which packing does not know")
    heads, width, dtype = query.shape[1], value.shape[3], value.dtype
    repeats = heads // key.shape[1]
    if any(others.get(name) is not None for name in _UNKNOWN_TERMS):
        raise ValueError(f"{type(module).__name__} has terms in its attention that packing does not know")
    # torch's fused attention on a CPU is 2 to 10 times slower in bfloat16
    computed = torch.float32 if query.device.type == "cpu" else dtype
    query, key, value = query.to(computed), key.to(computed), value.to(computed)
    spread = [_Spread.apply(_by_token(states), packing, at > 0) for at, states in enumerate((query, key, value))]
    outputs = []
    for block, queries, keys, values in zip(packing.blocks, *spread, strict=True):
        rows = block.shape[0]
        with torch.autocast(query.device.type, enabled=False):
            attended = scaled_dot_product_attention(
                queries.view(rows, -1, heads, query.shape[3]).transpose(1, 2),
                repeat_kv(keys.view(rows, -1, key.shape[1], key.shape[3]).transpose(1, 2), repeats),
                repeat_kv(values.view(rows, -1, key.shape[1], width).transpose(1, 2), repeats),
                attn_mask=block.mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=block.mask is None,
            )  # (rows, heads, queries, width)
        outputs.append(attended.transpose(1, 2).reshape(-1, heads * width))
    return _Collect.apply(packing, *outputs).to(dtype).view(1, -1, heads, width), None


@contextmanager
def packed_attention_on(model: PreTrainedModel) -> Iterator[None]:
    """Switches the model to this attention for the block.

    Raises:
        ValueError: the model does not allow it.
    """
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ValueError(f"{type(model).__name__} does not let its attention be exchanged")
        yield
    finally:
        model.set_attn_implementation(before)


def _by_token(states: Tensor) -> Tensor:
    """(1, heads, tokens, width) as (tokens, heads * width)."""
    return states[0].transpose(0, 1).reshape(states.shape[2], -1)


class _Spread(torch.autograd.Function):
    """Tokens into the blocks' slots; the gradient of a prefix token is summed over the rows that see it."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, packing: Packing, as_keys: bool) -> tuple[Tensor, ...]:
        ctx.packing, ctx.as_keys = packing, as_keys
        return tuple(tokens.index_select(0, b.keys if as_keys else b.queries) for b in packing.blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        packing = ctx.packing
        slots = grads[0] if len(grads) == 1 else torch.cat(grads)
        total = slots.index_select(0, packing.key_slot if ctx.as_keys else packing.query_slot)
        if ctx.as_keys:
            for block, grad in zip(packing.blocks, grads, strict=True):
                by_row = grad.view(block.shape[0], block.shape[2], -1)
                for first, end, start, length in block.prefixes:
                    total[start : start + length] += by_row[first:end, :length].sum(0)
        return total, None, None


class _Collect(torch.autograd.Function):
    """The blocks' query slots back into the order of the tokens; padding is dropped and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, packing: Packing, *outputs: Tensor) -> Tensor:
        ctx.packing = packing
        slots = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return slots.index_select(0, packing.query_slot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = []
        for block in ctx.packing.blocks:
            part = grad.index_select(0, block.queries)
            parts.append(part if block.is_query is None else part.mul_(block.is_query))
        return (None, *parts)
