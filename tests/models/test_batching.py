"""How many tokens are computed at once, and which rows together."""

from __future__ import annotations

import torch

from everlearn.models.batching import by_length, ran_out_of_memory, tokens_at_once


def test_a_batch_holds_what_suits_the_device_and_no_more_logits_than_fit() -> None:
    assert tokens_at_once("cpu", 9999) == 1024
    assert tokens_at_once("cuda", 9999) == tokens_at_once("cuda", 9999, vocabulary=1000) == 9999
    assert tokens_at_once("cuda", 9999, vocabulary=1 << 17) == 1024
    assert tokens_at_once("cpu", 9999, vocabulary=1 << 20) == 128
    assert tokens_at_once("cpu", 9999, vocabulary=1 << 30) == 1


def test_items_of_like_length_are_together_the_longest_first_padding_included() -> None:
    lengths = [3, 9, 4, 99, 4, 2]
    assert list(by_length(lengths, lambda length: length, 12)) == [[99], [9], [4, 4, 3], [2]]
    assert list(by_length([], len, 12)) == []


def test_items_of_two_sides_are_never_together() -> None:
    lengths = [3, 9, 4, 8, 4]
    assert list(by_length(lengths, lambda length: length, 99, lambda length: length > 4)) == [[9, 8], [4, 4, 3]]


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert not ran_out_of_memory(RuntimeError("size mismatch"))
