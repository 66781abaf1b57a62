"""Laying a micro-batch out as one sequence without padding, each shared prefix once.

For each group of rows (`prefixes.py`) stands its prefix, then what follows it in each row. All layers but attention
see each token once and no padding. Attention runs over blocks of similar length, in which a row's queries meet the
keys of its prefix and its own; only these small blocks are padded.

Causal attention makes this exact: a prefix's states do not depend on what follows. With dropout on, the rows of a
group share the prefix's dropout mask: the same distribution for each row, drawn once.

The last token of a row predicts nothing and is left out; raw text keeps it, since all its states are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from everlearn.training.prefixes import Group
from everlearn.training.rows import EncodedRow

BLOCK_COST = 8192
"""Cost of one more attention block in score elements (query times key); chosen by measurement."""


@dataclass(frozen=True, slots=True)
class Block:
    """Sequences of similar length whose attention is computed together.

    Attributes:
        shape: (sequences, queries each, keys each), padding included.
        queries: Token index of each query slot, flattened; padding points at token 0.
        keys: The same for keys: prefix first, then own.
        is_query: 1 for real query slots, 0 for padding, (slots, 1); None without padding.
        mask: True where a query may see a key, (sequences or 1, 1, queries, keys); None: plain causal.
        prefixes: (first sequence, last + 1, first token of the prefix, its length) for the sequences that have one.
    """

    shape: tuple[int, int, int]
    queries: Tensor
    keys: Tensor
    is_query: Tensor | None
    mask: Tensor | None
    prefixes: tuple[tuple[int, int, int, int], ...]

    def to(self, device: torch.device) -> Block:
        """The same on another device."""
        return replace(
            self,
            queries=self.queries.to(device),
            keys=self.keys.to(device),
            is_query=None if self.is_query is None else self.is_query.to(device),
            mask=None if self.mask is None else self.mask.to(device),
        )


@dataclass(frozen=True, slots=True)
class Packing:
    """One micro-batch laid out.

    Attributes:
        rows: What it holds.
        input_ids: (1, tokens).
        position_ids: Each token's place in its row, (1, tokens).
        blocks: Of attention; every token is a query of exactly one.
        query_slot: Where each token stands among all query slots, (tokens,).
        key_slot: Where each token stands among all key slots as an own key, (tokens,).
        predicts: Tokens that predict an answer token, (answers,).
        targets: The ids they should predict, (answers,).
        text: All tokens of the rows of raw text, row after row, (text tokens,).
        places: Where the tokens of each row stand, its prefix and its own.
    """

    rows: tuple[EncodedRow, ...]
    input_ids: Tensor
    position_ids: Tensor
    blocks: tuple[Block, ...]
    query_slot: Tensor
    key_slot: Tensor
    predicts: Tensor
    targets: Tensor
    text: Tensor
    places: tuple[tuple[range, range], ...]

    def to(self, device: torch.device) -> Packing:
        """The same on another device."""
        if device.type == "cpu":
            return self
        return Packing(
            self.rows,
            self.input_ids.to(device),
            self.position_ids.to(device),
            tuple(block.to(device) for block in self.blocks),
            self.query_slot.to(device),
            self.key_slot.to(device),
            self.predicts.to(device),
            self.targets.to(device),
            self.text.to(device),
            self.places,
        )


@dataclass(frozen=True, slots=True)
class _Span:
    """A sequence of attention: own tokens `start..start+length`, after the prefix `prefix_start..+prefix_length`."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def keys(self) -> int:
        return self.prefix_length + self.length


def pack(groups: Sequence[Group]) -> Packing:
    """Lays out one micro-batch."""
    ids: list[int] = []
    positions: list[int] = []
    predicts: list[int] = []
    targets: list[int] = []
    text: list[int] = []
    places: list[tuple[range, range]] = []
    spans: list[_Span] = []
    for group in groups:
        shared, prefix_start = group.prefix_length, len(ids)
        if shared:
            ids += group.rows[0].ids[:shared]
            positions += range(shared)
            spans.append(_Span(prefix_start, shared))
        for row in group.rows:
            start, length = len(ids), row.computed - shared
            ids += row.ids[shared : row.computed]
            positions += range(shared, shared + length)
            spans.append(_Span(start, length, prefix_start, shared))
            first = max(row.prompt_length, 1)
            if row.classes:
                predicts += [prefix_start + at if at < shared else start + at - shared for at, _ in row.classes]
                targets += [label for _, label in row.classes]
            else:
                predicts += range(start + first - 1 - shared, start + len(row.ids) - 1 - shared)
                targets += row.ids[first:]
            text += range(start, start + length) if row.is_text else ()
            places.append((range(prefix_start, prefix_start + shared), range(start, start + length)))
    blocks, query_slot, key_slot = _blocks(spans, len(ids))
    return Packing(
        rows=tuple(row for group in groups for row in group.rows),
        input_ids=torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        blocks=blocks,
        query_slot=query_slot,
        key_slot=key_slot,
        predicts=torch.tensor(predicts),
        targets=torch.tensor(targets),
        text=torch.tensor(text, dtype=torch.long),
        places=tuple(places),
    )


def _blocks(spans: Sequence[_Span], token_count: int) -> tuple[tuple[Block, ...], Tensor, Tensor]:
    blocks = []
    query_slot = np.zeros(token_count, dtype=np.int64)
    key_slot = np.zeros(token_count, dtype=np.int64)
    query_base = key_base = 0
    for members in _similar(spans):
        members.sort(key=lambda span: (span.prefix_start, span.prefix_length))
        start, length, prefix_start, shared = (
            np.array([getattr(span, field) for span in members])[:, None]
            for field in ("start", "length", "prefix_start", "prefix_length")
        )
        query_count, key_count = int(length.max()), int((length + shared).max())
        at = np.arange(query_count)[None]  # (1, queries)
        real = at < length  # (sequences, queries)
        queries = np.where(real, start + at, 0)
        slots = np.arange(len(members))[:, None]
        query_slot[queries[real]] = (query_base + slots * query_count + at)[real]
        key_slot[queries[real]] = (key_base + slots * key_count + shared + at)[real]
        to = np.arange(key_count)[None]  # (1, keys)
        own = np.where(to < shared + length, start + to - shared, 0)
        keys = np.where(to < shared, prefix_start + to, own)
        blocks.append(
            Block(
                shape=(len(members), query_count, key_count),
                queries=torch.from_numpy(queries.reshape(-1)),
                keys=torch.from_numpy(keys.reshape(-1)),
                is_query=None if real.all() else torch.from_numpy(real.reshape(-1, 1).astype(np.float32)),
                mask=_mask(shared[:, 0], query_count, key_count),
                prefixes=_prefix_runs(members),
            )
        )
        query_base += len(members) * query_count
        key_base += len(members) * key_count
    return tuple(blocks), torch.from_numpy(query_slot), torch.from_numpy(key_slot)


def _mask(shared: np.ndarray, query_count: int, key_count: int) -> Tensor | None:
    """Query `a` of a sequence sees its prefix and its own first `a + 1` tokens; padding keys come after those."""
    if not shared.any():
        return None
    lengths = shared[:1] if (shared == shared[0]).all() else shared
    last = lengths[:, None, None, None] + np.arange(query_count)[None, None, :, None]
    return torch.from_numpy(np.arange(key_count)[None, None, None] <= last)


def _prefix_runs(members: Sequence[_Span]) -> tuple[tuple[int, int, int, int], ...]:
    """Runs of neighbouring sequences with the same prefix."""
    runs: list[tuple[int, int, int, int]] = []
    for at, span in enumerate(members):
        if not span.prefix_length:
            continue
        if runs and runs[-1][1] == at and runs[-1][2:] == (span.prefix_start, span.prefix_length):
            runs[-1] = (runs[-1][0], at + 1, *runs[-1][2:])
        else:
            runs.append((at, at + 1, span.prefix_start, span.prefix_length))
    return tuple(runs)


def _similar(spans: Sequence[_Span]) -> list[list[_Span]]:
    """Splits sequences into blocks so that padding and the number of blocks cost least together.

    Sequences are sorted by keys and queries; a block is a run of neighbours, and costs what its padded attention
    does plus `BLOCK_COST`.
    """
    spans = sorted(spans, key=lambda span: (span.keys, span.length))
    best = [0.0] * (len(spans) + 1)
    cut = [0] * (len(spans) + 1)
    for end in range(1, len(spans) + 1):
        best[end] = float("inf")
        queries = keys = 0
        for start in range(end - 1, -1, -1):
            queries, keys = max(queries, spans[start].length), max(keys, spans[start].keys)
            cost = best[start] + (end - start) * queries * keys + BLOCK_COST
            if cost < best[end]:
                best[end], cut[end] = cost, start
    blocks = []
    end = len(spans)
    while end:
        blocks.append(list(spans[cut[end] : end]))
        end = cut[end]
    return blocks[::-1]
