"""Whether rows of several lengths may be computed together at all.

Nothing is tried where it is known: Transformers' masks hide padding from attention, and positions are given by hand.
Where a model keeps states of another kind beside attention, or finds positions by itself, a few tokens are tried when
it is loaded. A cache of a kind that is not known here (compressed or indexed keys) may betray itself only after
thousands of tokens, so rows of such models share a batch with rows of their own length alone (`sides.py`).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from everlearn.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = {"float32": 1e-3, "float64": 1e-3}
_TOLERANCE_ELSEWHERE = 0.1
"""In bfloat16 0.01 to 0.03 was measured, with up to 32 layers."""


def tolerance(model: PreTrainedModel) -> float:
    """Root mean square difference, in standard deviations, from which on two computations of logits are not equal."""
    return _TOLERANCE.get(str(model.dtype).removeprefix("torch."), _TOLERANCE_ELSEWHERE)


def hides_padding(model: PreTrainedModel) -> bool:
    """Whether attention is all that mixes tokens, at positions that the caller gives: nothing has to be tried."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    has_positions = "position_ids" in inspect.signature(model.forward).parameters
    is_attention = _cache_layers(model) <= {DynamicLayer, DynamicSlidingWindowLayer} and not model._is_stateful
    return has_positions and is_attention


def keeps_unknown_states(model: PreTrainedModel) -> bool:
    """Whether its cache is of a kind of which trying a few tokens says little."""
    from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

    known = {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
    return any(kind not in known and not issubclass(kind, LinearAttentionLayer) for kind in _cache_layers(model))


def _cache_layers(model: PreTrainedModel) -> set[type]:
    from transformers import DynamicCache

    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def check_padding(model: PreTrainedModel, name: str) -> None:
    """Tries whether a short row beside a longer one, which goes on from it, has the logits that it has alone.

    Args:
        model: As loaded, in evaluation mode.
        name: Where it comes from, for the message.

    Raises:
        ModelError: the two differ.
    """
    import torch

    is_decoder = getattr(model.config, "is_decoder", True)  # BERT and its kin look ahead unless they are told not to
    if (hides_padding(model) and is_decoder) or keeps_unknown_states(model):
        return
    vocabulary = model.config.get_text_config().vocab_size
    long = torch.tensor([5, 17, 8, 2, 11, 29, 23, 13, 7, 31, 19], device=model.device) % vocabulary
    short = long[:4]
    both = torch.stack([long, torch.cat([short, long[:1].expand(len(long) - len(short))])])
    mask = torch.ones_like(both)
    mask[1, len(short) :] = 0
    with torch.no_grad():
        together = model(input_ids=both, attention_mask=mask, use_cache=False).logits[:, : len(short)].float()
        alone = model(input_ids=short[None], attention_mask=mask[:1, : len(short)], use_cache=False).logits.float()
    difference = (together - alone).square().mean().sqrt()
    if difference > 3 * tolerance(model) * alone.std():
        raise ModelError(
            f"{name}: {model.config.model_type} models compute a row otherwise beside a longer one, or look "
            "at tokens that come later, so its answers would depend on the rows that it is computed with: choose "
            "another model."
        )
