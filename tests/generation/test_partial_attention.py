from __future__ import annotations

import pytest
import torch

from everlearn.generation.partial_attention import (
    attend_part,
    attend_part_by_scores,
    attend_shared,
    fold_groups,
    join_parts,
    repeat_heads,
)

ROWS, HEADS, KEY_HEADS, WIDTH, SCALE = 3, 4, 2, 8, 0.3


def states(seed: int, rows: int, heads: int, length: int) -> torch.Tensor:
    return torch.randn(rows, heads, length, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("attend", [attend_part, attend_part_by_scores])
def test_two_parts_joined_are_the_attention_over_all(attend):
    query, key, value = states(0, ROWS, HEADS, 5), states(1, ROWS, HEADS, 11), states(2, ROWS, HEADS, 11)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=SCALE)
    first = attend(query, key[:, :, :4], value[:, :, :4], SCALE)
    second = attend(query, key[:, :, 4:], value[:, :, 4:], SCALE)
    torch.testing.assert_close(join_parts(*first, *second), expected)


@pytest.mark.parametrize("attend", [attend_part, attend_part_by_scores])
def test_a_shared_prefix_before_causal_rows_is_the_attention_over_all(attend):
    query = states(0, ROWS, HEADS, 5)
    key, value = states(1, ROWS, KEY_HEADS, 5), states(2, ROWS, KEY_HEADS, 5)
    prefix_key, prefix_value = states(3, 1, KEY_HEADS, 7), states(4, 1, KEY_HEADS, 7)
    own, own_sum = attend(query, repeat_heads(key, HEADS), repeat_heads(value, HEADS), SCALE, causal=True)
    shared, shared_sum = attend_shared(fold_groups(query, KEY_HEADS), prefix_key, prefix_value, SCALE)
    joined = join_parts(own, own_sum, shared.reshape(own.shape), shared_sum.reshape(own_sum.shape))
    whole_key = torch.cat([prefix_key.expand(ROWS, -1, -1, -1), key], dim=2)
    whole_value = torch.cat([prefix_value.expand(ROWS, -1, -1, -1), value], dim=2)
    mask = torch.ones(5, 12, dtype=torch.bool).tril(7)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, repeat_heads(whole_key, HEADS), repeat_heads(whole_value, HEADS), attn_mask=mask, scale=SCALE
    )
    torch.testing.assert_close(joined, expected)


def test_a_mask_hides_keys_alike_in_both_forms():
    query, key, value = states(0, ROWS, HEADS, 1), states(1, ROWS, HEADS, 6), states(2, ROWS, HEADS, 6)
    mask = torch.zeros(ROWS, 1, 1, 6)
    mask[0, ..., :2] = float("-inf")
    mask[2, ..., 5:] = float("-inf")
    for a, b in zip(
        attend_part(query, key, value, SCALE, mask),
        attend_part_by_scores(query, key, value, SCALE, mask),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    hidden = attend_part(query[:1], key[:1, :, 2:], value[:1, :, 2:], SCALE)[0]
    torch.testing.assert_close(attend_part(query, key, value, SCALE, mask)[0][:1], hidden)


def test_a_part_without_weight_changes_nothing():
    query, key, value = states(0, ROWS, HEADS, 1), states(1, ROWS, HEADS, 6), states(2, ROWS, HEADS, 6)
    out, log_sum = attend_part(query, key, value, SCALE)
    nothing = torch.zeros_like(out), torch.full_like(log_sum, float("-inf"))
    assert torch.equal(join_parts(out, log_sum, *nothing), out)
