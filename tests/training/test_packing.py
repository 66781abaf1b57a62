"""The layout of micro-batches: what is computed once, what is left out, and that nothing is lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.training.packing import pack
from everlearn.training.prefixes import LEAST_SAVING, shared_prefixes, split_batch
from everlearn.training.rows import EncodedRow
from tests.training.rows_of_tokens import random_rows


def row(*ids: int, prompt: int) -> EncodedRow:
    return EncodedRow(tuple(ids), prompt)


def test_two_tasks_make_two_groups_with_their_whole_instruction() -> None:
    first, second = tuple(range(10, 60)), tuple(range(70, 120))
    rows = [EncodedRow((*start, n, n + 1, 5, 2), len(start) + 2) for n in (200, 300, 400) for start in (first, second)]
    groups = shared_prefixes(rows)
    assert [(group.prefix_length, len(group.rows)) for group in groups] == [(50, 3), (50, 3)]


def test_a_beginning_too_short_to_pay_is_not_shared() -> None:
    start = tuple(range(10, 10 + LEAST_SAVING))
    rows = [EncodedRow((*start, n, 5, 2), len(start) + 1) for n in (200, 300)]
    assert all(group.prefix_length == 0 for group in shared_prefixes(rows))


def test_equal_prompts_keep_their_last_token_apart() -> None:
    prompt = tuple(range(10, 60))
    (group,) = shared_prefixes([EncodedRow((*prompt, n, 2), len(prompt)) for n in (200, 300)])
    assert group.prefix_length == len(prompt) - 1


def test_a_row_without_prompt_is_predicted_from_its_own_first_token() -> None:
    assert row(7, 8, 2, prompt=0).answer_count == 2
    packing = pack(split_batch([row(7, 8, 2, prompt=0)], 100)[0])
    assert packing.input_ids.tolist() == [[7, 8]]
    assert (packing.predicts.tolist(), packing.targets.tolist()) == ([0, 1], [8, 2])


def test_raw_text_keeps_its_last_token_whose_state_predicts_nothing() -> None:
    text = EncodedRow((7, 8, 2), 0, is_text=True)
    packing = pack(split_batch([row(5, 6, 9, 2, prompt=2), text, text], 100)[0])
    assert packing.input_ids[0, packing.text].tolist() == [7, 8, 2] * 2
    assert sorted(packing.targets.tolist()) == [2, 2, 2, 8, 8, 9]
    assert all(int(packing.input_ids[0, at]) != 2 for at in packing.predicts)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 40), seed=st.integers(0, 99), prefixes=st.integers(1, 6), most=st.integers(60, 2000))
def test_every_row_is_laid_out_once_within_the_bound(count: int, seed: int, prefixes: int, most: int) -> None:
    rows = random_rows(count, seed=seed, prefixes=prefixes)
    parts = [pack(groups) for groups in split_batch(rows, most)]
    assert sorted(row.ids for part in parts for row in part.rows) == sorted(row.ids for row in rows)
    for part in parts:
        tokens = part.input_ids.shape[1]
        assert tokens <= most or len(part.rows) == 1
        targets = [token for row in part.rows for token in row.ids[row.prompt_length :]]
        assert part.targets.tolist() == targets
        assert _seen_by_prediction(part) == [
            (*row.ids[:at],) for row in part.rows for at in range(row.prompt_length, len(row.ids))
        ]


def _seen_by_prediction(part) -> list[tuple[int, ...]]:
    """For each prediction, the tokens that its query can see, in order of position."""
    ids, positions = part.input_ids[0], part.position_ids[0]
    seen: dict[int, tuple[int, ...]] = {}
    for block in part.blocks:
        rows, queries, keys = block.shape
        mask = torch.ones(queries, keys).tril().bool()[None, None] if block.mask is None else block.mask
        mask = mask.expand(rows, 1, queries, keys)[:, 0]
        for r in range(rows):
            for q in range(queries):
                if block.is_query is not None and not block.is_query[r * queries + q]:
                    continue
                visible = block.keys.view(rows, keys)[r][mask[r, q]]
                assert positions[visible].tolist() == list(range(len(visible)))
                seen[int(block.queries.view(rows, queries)[r, q])] = tuple(ids[visible].tolist())
    assert len(seen) == ids.numel()
    return [seen[int(token)] for token in part.predicts]


def test_a_shared_instruction_is_computed_once() -> None:
    rows = random_rows(32, prefixes=1)
    (part,) = (pack(groups) for groups in split_batch(rows, 1 << 20))
    shared = shared_prefixes(rows)[0].prefix_length
    assert shared > 4
    assert part.input_ids.shape[1] <= sum(len(row.ids) - 1 for row in rows) - 20 * shared


@pytest.mark.parametrize("most", [1, 50])
def test_a_row_longer_than_the_bound_is_computed_alone(most: int) -> None:
    rows = [EncodedRow(tuple(range(1, 90)), 80)] * 2
    assert [len(groups[0].rows) for groups in split_batch(rows, most)] == [1, 1]
