"""How much may be cached in the memory at hand.

A token's keys and values of a 7-billion model take half a megabyte in bfloat16, so a batch of 256 rows and 600
columns would need 75 GiB. The limit is a share of what is free when a call begins; a batch that does not fit all the
same is halved (`engine.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everlearn.devices import free_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE = 0.5
"""Of the free memory; the rest is for activations, shared prefixes and other programs. Chosen here."""
COPIES = 2
"""A store that grows stands beside the one before it."""
MOST_TOKENS = {"cpu": 65536}
"""Upper limit by type of device: more rows at a time are no faster there."""


def cached_tokens(model: PreTrainedModel) -> int:
    """How many tokens' keys and values may be held at once; at least 1."""
    fitting = int(free_bytes(model.device) * SHARE / COPIES) // token_bytes(model)
    return max(1, min(fitting, MOST_TOKENS.get(model.device.type, fitting)))


def token_bytes(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values in all layers."""
    settings = model.config.get_text_config()
    heads = getattr(settings, "num_attention_heads", None) or 1  # state spaces have none
    key_heads = getattr(settings, "num_key_value_heads", None) or heads
    try:
        width = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    except RuntimeError:  # Transformers' answer where layers differ (Gemma-4)
        width = max(layer.head_dim for layer in settings.per_layer_config)
    return int(settings.num_hidden_layers * 2 * key_heads * width * model.dtype.itemsize)
