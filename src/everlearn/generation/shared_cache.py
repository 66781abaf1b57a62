"""A cache for Transformers models in which rows share the keys and values of a common prefix.

Transformers calls `update` on the cache and then the attention function that the model's configuration names.
While a model runs inside `attending`, that function is `shared_prefix_attention`, and it hands queries, keys and
values to the pass in progress: a `PrefillPass` (prompts are computed) or the row store (one token further).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

from everlearn.generation.partial_attention import attend_part, attend_shared, fold_groups, join_parts, repeat_heads

IMPLEMENTATION = "everlearn_shared_prefix"
SPECIAL = ("softcap", "s_aux", "sinks", "position_bias", "alibi", "score_mod", "block_mask")
"""Arguments by which models ask for attention of a special kind."""


class UnsupportedAttentionError(Exception):
    """The model's attention is of a kind that cannot be split into parts here."""


class Pass(Protocol):
    """What happens to the queries, keys and values of one forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Keeps keys and values; (rows, heads, queries, width) attention."""
        ...


@dataclass(frozen=True)
class Segment:
    """Keys and values of a prefix from the first token on, for each layer (1, key heads, length, width)."""

    keys: list[Tensor]
    values: list[Tensor]
    length: int


class SharedCache(Cache):
    """Hands each layer's states to a pass; the cache itself keeps nothing."""

    def __init__(self, forward_pass: Pass) -> None:
        super().__init__(layers=[])
        self.forward_pass = forward_pass
        self.layer = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Notes the layer whose attention comes next."""
        self.layer = layer_idx
        return key_states, value_states


class PrefillPass:
    """Computes prompts behind a common prefix, or the prefix itself.

    Args:
        prefix: What all rows share; None: nothing.
        pads: (rows,) padding on the left of each row; None where there is none.
        length: Of the padded rows.
        dtype: Of the model.
    """

    def __init__(self, prefix: Segment | None, pads: Tensor | None, length: int, dtype: torch.dtype) -> None:
        self._prefix = prefix
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._mask: Tensor | None = None  # (rows, 1, length, length), 0 or minus infinity
        if pads is not None:
            columns = torch.arange(length, device=pads.device)
            seen = (columns[None, :] <= columns[:, None]) & (columns >= pads[:, None, None])
            seen = seen | (columns[None, :] == columns[:, None])  # padding sees itself: no row without any key
            zero = torch.zeros((), dtype=dtype, device=pads.device)
            self._mask = torch.where(seen, zero, float("-inf"))[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention over the prefix and, causally, over the row itself."""
        assert layer == len(self.keys), "layers come in their order, each once"
        self.keys.append(key)
        self.values.append(value)
        heads, key_heads = query.shape[1], key.shape[1]
        wide_key, wide_value = repeat_heads(key, heads), repeat_heads(value, heads)
        causal = self._mask is None and query.shape[2] > 1
        if self._prefix is None:
            return nn.functional.scaled_dot_product_attention(
                query, wide_key, wide_value, attn_mask=self._mask, is_causal=causal, scale=scale
            )
        out, log_sum = attend_part(query, wide_key, wide_value, scale, self._mask, causal)
        folded = fold_groups(query, key_heads)
        shared, shared_log_sum = attend_shared(folded, self._prefix.keys[layer], self._prefix.values[layer], scale)
        return join_parts(out, log_sum, shared.reshape(out.shape), shared_log_sum.reshape(log_sum.shape))

    def segment(self) -> Segment:
        """What a row behind the prefix and these tokens has before it."""
        if self._prefix is None:
            keys, values = [key.contiguous() for key in self.keys], [value.contiguous() for value in self.values]
        else:
            keys = [torch.cat(pair, dim=2) for pair in zip(self._prefix.keys, self.keys, strict=True)]
            values = [torch.cat(pair, dim=2) for pair in zip(self._prefix.values, self.values, strict=True)]
        return Segment(keys, values, keys[0].shape[2])


_current: ContextVar[SharedCache] = ContextVar("cache")
_window: ContextVar[int | None] = ContextVar("window", default=None)


def window_of(model: PreTrainedModel) -> int | None:
    """The shortest window (or chunk) of attention of any layer; None: every layer sees whole rows.

    Rows of at most so many tokens are attended to as without it.
    """
    layers = DynamicCache(config=model.config).layers
    return min(
        (layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)), default=None
    )


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[Tensor, None]:
    """The attention function that Transformers calls; shapes as in its `sdpa_attention_forward`."""
    asked = [name for name in SPECIAL if options.get(name) is not None]
    window, known = options.get("sliding_window"), _window.get()
    if window is not None and (known is None or window < known):  # type: ignore[operator]
        asked.append("sliding_window")  # one of which its cache does not tell
    if attention_mask is not None and attention_mask.numel() > 1:
        asked.append("a mask of its own")
    if asked or key.shape[-1] != value.shape[-1] or key.shape[2] != query.shape[2]:
        raise UnsupportedAttentionError(", ".join(asked) or "keys, values and queries of different shapes")
    cache = _current.get()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = cache.forward_pass.attend(cache.layer, query, key, value, scale)
    return out.transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, shared_prefix_attention)


@contextmanager
def attending(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's attention goes through `shared_prefix_attention`; rows are no longer than its window."""
    settings = model.config
    before = settings._attn_implementation
    settings._attn_implementation = IMPLEMENTATION
    token = _window.set(window_of(model))
    try:
        yield
    finally:
        _window.reset(token)
        settings._attn_implementation = before


def run(
    model: PreTrainedModel, forward_pass: Pass, ids: Tensor, positions: Tensor, last_only: dict[str, int]
) -> Tensor:
    """One forward pass; (rows, vocabulary) float32 logits of the last position."""
    cache = SharedCache(forward_pass)
    token = _current.set(cache)
    try:
        output = model(
            input_ids=ids,
            # given whole, so that the model builds no mask; one with more elements is of its own making
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **last_only,
        )
    finally:
        _current.reset(token)
    return output.logits[:, -1].float()
