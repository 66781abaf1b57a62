"""Attention over a part of the keys, and the exact join of two parts.

Softmax attention over keys A and B together is the mean of the attention over A and over B, weighted by the sums of
their exponentials. So a prefix that many rows share can be attended by all their queries in one product of
matrices, read from memory once, while each row attends to what is its own; the two are joined afterwards.

Source: arXiv 2402.05099 (Hydragen), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention over one part of the keys.

    Args:
        query: (rows, heads, queries, width).
        key: (rows, heads, keys, width).
        value: (rows, heads, keys, width).
        scale: Factor on the products.
        mask: Broadcastable to (rows, heads, queries, keys), 0 or minus infinity, in the query's type.
        causal: Query i sees the keys up to i; as many keys as queries.

    Returns:
        The output, shaped as `query`, and the logarithm of its weights' sum, (rows, heads, queries), float32.
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, log_sum
    return attend_part_by_scores(query, key, value, scale, mask, causal)


def attend_part_by_scores(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """`attend_part` in plain operations, for any device."""
    scores = ((query * scale) @ key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    if causal:
        count = query.shape[-2]
        future = torch.ones((count, count), dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    log_sum = scores.logsumexp(dim=-1)
    return (scores - log_sum[..., None]).exp().to(value.dtype) @ value, log_sum


def join_parts(out_a: Tensor, log_sum_a: Tensor, out_b: Tensor, log_sum_b: Tensor) -> Tensor:
    """Attention over both parts; a part whose `log_sum` is minus infinity has no weight."""
    share = torch.sigmoid(log_sum_b - log_sum_a)[..., None].to(out_a.dtype)
    return torch.lerp(out_a, out_b, share)


def fold_groups(query: Tensor, key_heads: int) -> Tensor:
    """(rows, heads, queries, width) to (rows, key heads, heads per key head * queries, width)."""
    rows, heads, queries, width = query.shape
    return query.reshape(rows, key_heads, heads // key_heads * queries, width)


def repeat_heads(states: Tensor, heads: int) -> Tensor:
    """(rows, key heads, length, width) to (rows, heads, length, width), for grouped-query attention."""
    rows, key_heads, length, width = states.shape
    if key_heads == heads:
        return states
    wide = states[:, :, None].expand(rows, key_heads, heads // key_heads, length, width)
    return wide.reshape(rows, heads, length, width)


def attend_shared(query: Tensor, prefix_key: Tensor, prefix_value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """All queries of all rows over one prefix, whole.

    Args:
        query: (rows, key heads, queries, width), groups folded.
        prefix_key: (1, key heads, prefix, width).
        prefix_value: Alike.
        scale: Factor on the products.

    Returns:
        As `attend_part`.
    """
    rows, key_heads, queries, width = query.shape
    together = query.transpose(0, 1).reshape(1, key_heads, rows * queries, width)
    out, log_sum = attend_part(together, prefix_key, prefix_value, scale)
    out = out.reshape(key_heads, rows, queries, -1).transpose(0, 1)
    return out, log_sum.reshape(key_heads, rows, queries).transpose(0, 1)
