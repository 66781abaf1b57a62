"""What kinds of attention are left to the model itself."""

from __future__ import annotations

import pytest
import torch

from everlearn.generation.shared_cache import UnsupportedAttentionError, shared_prefix_attention

HEADS, LENGTH, WIDTH = 2, 3, 4


def states(length: int = LENGTH, width: int = WIDTH) -> torch.Tensor:
    return torch.zeros(1, HEADS, length, width)


@pytest.mark.parametrize(
    "name", ["softcap", "s_aux", "sinks", "position_bias", "sliding_window", "alibi", "score_mod", "block_mask"]
)
def test_attention_of_a_special_kind_is_refused_by_the_name_of_what_asks_for_it(name: str) -> None:
    with pytest.raises(UnsupportedAttentionError, match=f"^{name}$"):
        shared_prefix_attention(torch.nn.Identity(), states(), states(), states(), None, **{name: 1.0})


@pytest.mark.parametrize(
    ("key", "value"),
    [(states(), states(width=WIDTH + 1)), (states(LENGTH + 1), states(LENGTH + 1))],
    ids=["values of another width", "more keys than queries"],
)
def test_keys_and_values_of_other_shapes_than_expected_are_refused(key: torch.Tensor, value: torch.Tensor) -> None:
    with pytest.raises(UnsupportedAttentionError, match="different shapes"):
        shared_prefix_attention(torch.nn.Identity(), states(), key, value, None)
