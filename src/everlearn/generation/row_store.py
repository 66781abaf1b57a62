"""The keys and values that belong to single rows, in one preallocated tensor, and attention one token further.

Transformers' own cache copies everything cached at every step, because it appends by concatenation; here a step
writes one column. The layout (rows, key heads, layers, 2, columns, width) keeps a row in one piece, so that taking
rows out is one copy for each row moved, and lets a layer's keys be viewed as a batch of matrices.

Rows that came together (a cohort) are neighbours and equally long. Neighbouring cohorts of about the same length are
attended together; for others that would mean reading the columns of the longest in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from everlearn.generation.partial_attention import attend_part, attend_shared, fold_groups, join_parts
from everlearn.generation.shared_cache import Segment

GRANULE = 64
"""Columns are allocated in multiples of this; chosen here."""

READ_IN_VAIN = {"cpu": 1 << 19}
"""Bytes of a layer that may be read in vain rather than splitting a step's attention in two, by type of device.

Chosen here: what is read in the time that starting a few more operations takes (about 50 microseconds).
"""
READ_IN_VAIN_ELSEWHERE = 1 << 27


@dataclass(slots=True)
class Cohort:
    """Rows that came together.

    Attributes:
        rows: How many are left.
        columns: Columns that each has filled.
        segment: The prefix that they share.
    """

    rows: int
    columns: int
    segment: Segment | None


@dataclass(slots=True)
class Block:
    """Neighbouring rows whose own columns are attended together in one step.

    Attributes:
        rows: Which.
        columns: Columns to read, the new one included.
        places: The new column of each row; None: it is the last one of all rows.
        mask: (rows, 1, 1, columns), 0 or minus infinity; None: every row sees all columns.
    """

    rows: slice
    columns: int
    places: tuple[Tensor, Tensor] | None
    mask: Tensor | None


class RowStore:
    """Rows of a running batch; a row's own tokens begin after the padding on its left.

    Args:
        rows: Most rows expected at a time.
        tokens: Most columns of all rows together that are set aside beyond what is needed.
    """

    def __init__(self, rows: int, tokens: int) -> None:
        self.cohorts: list[Cohort] = []
        self._rows = rows
        self._tokens = tokens
        self._most_columns = 0
        self._pads: list[int] = []
        self._store = torch.empty(0)
        self._blocks: list[Block] = []

    @property
    def count(self) -> int:
        """Rows at hand."""
        return len(self._pads)

    def add(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        pads: Sequence[int],
        copies: int,
        segment: Segment | None,
        most_columns: int,
    ) -> None:
        """Appends `copies` rows for each prompt.

        Args:
            keys: For each layer (prompts, key heads, length, width).
            values: Alike.
            pads: Columns of padding on the left of each prompt.
            copies: Rows of each prompt.
            segment: The prefix that these prompts share.
            most_columns: How many any row of the store may come to fill.
        """
        self._most_columns = most_columns
        prompts, key_heads, length, width = keys[0].shape
        first, end = self.count, self.count + prompts * copies
        self._reserve(end, length + 1, keys[0], len(keys))
        for layer in range(len(keys)):
            for kind, states in enumerate((keys[layer], values[layer])):
                target = self._store[first:end, :, layer, kind, :length]
                target.view(prompts, copies, key_heads, length, width).copy_(states[:, None])
        self._pads += [pad for pad in pads for _ in range(copies)]
        self.cohorts.append(Cohort(end - first, length, segment))

    def begin_step(self) -> None:
        """Prepares one more column in every row."""
        self._reserve(self.count, self._longest() + 1, self._store, self._store.shape[2])
        token_bytes = 2 * self._store.shape[1] * self._store.shape[-1] * self._store.element_size()
        most = READ_IN_VAIN.get(self._store.device.type, READ_IN_VAIN_ELSEWHERE) // token_bytes
        self._blocks = []
        first = 0
        together: list[Cohort] = []
        for cohort in self.cohorts:
            tried = [*together, cohort]
            longest = max(c.columns for c in tried)
            if together and sum(c.rows * (longest - c.columns) for c in tried) > most:
                first = self._add_block(first, together)
                tried = [cohort]
            together = tried
        self._add_block(first, together)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Writes the new column and attends to prefix and row."""
        folded = fold_groups(query, key.shape[1])
        parts = []
        for block in self._blocks:
            states = self._store[block.rows, :, layer]  # (rows, key heads, 2, columns, width)
            keys, values = states[:, :, 0, : block.columns], states[:, :, 1, : block.columns]
            if block.places is None:
                keys[:, :, -1], values[:, :, -1] = key[block.rows, :, 0], value[block.rows, :, 0]
            else:
                rows, columns = block.places
                keys[rows, :, columns], values[rows, :, columns] = key[block.rows, :, 0], value[block.rows, :, 0]
            parts.append(attend_part(folded[block.rows], keys, values, scale, block.mask))
        out, log_sum = _stack(parts)
        if any(cohort.segment is not None for cohort in self.cohorts):
            out = join_parts(out, log_sum, *self._attend_segments(layer, folded, scale))
        return out.reshape(query.shape)

    def end_step(self) -> None:
        """The column is written in all layers."""
        for cohort in self.cohorts:
            cohort.columns += 1

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, which come in ascending order."""
        used = self._longest()
        if self._store.device.type == "cpu":
            for target, source in enumerate(rows):
                if target != source:
                    self._store[target, :, :, :, :used] = self._store[source, :, :, :, :used]
        else:
            index = torch.tensor(rows, dtype=torch.long, device=self._store.device)
            self._store[: len(rows), :, :, :, :used] = self._store[index, :, :, :, :used]
        self._pads = [self._pads[row] for row in rows]
        first = 0
        for cohort in self.cohorts:
            end = first + cohort.rows
            cohort.rows = sum(first <= row < end for row in rows)
            first = end
        self.cohorts = [cohort for cohort in self.cohorts if cohort.rows]

    def _attend_segments(self, layer: int, folded: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """All rows over their prefixes; no weight where a row has none."""
        parts = []
        first = 0
        for _, cohorts in groupby(self.cohorts, key=lambda cohort: id(cohort.segment)):
            run = list(cohorts)
            end = first + sum(cohort.rows for cohort in run)
            segment = run[0].segment
            query = folded[first:end]
            if segment is None:
                parts.append((torch.zeros_like(query), query.new_full(query.shape[:-1], float("-inf"))))
            else:
                parts.append(attend_shared(query, segment.keys[layer], segment.values[layer], scale))
            first = end
        return _stack(parts)

    def _add_block(self, first: int, cohorts: Sequence[Cohort]) -> int:
        """Plans one block for these cohorts; the row after it."""
        end = first + sum(cohort.rows for cohort in cohorts)
        columns = max(cohort.columns for cohort in cohorts) + 1
        device = self._store.device
        pads = self._pads[first:end]
        places = mask = None
        is_uniform = all(cohort.columns + 1 == columns for cohort in cohorts)
        if any(pads) or not is_uniform:
            numbers = torch.arange(columns, device=device)
            hidden = numbers < torch.tensor(pads, device=device)[:, None]
            if not is_uniform:
                new = torch.tensor([cohort.columns for cohort in cohorts for _ in range(cohort.rows)], device=device)
                places = (torch.arange(end - first, device=device), new)
                hidden = hidden | (numbers > new[:, None])
            zero = torch.zeros((), dtype=self._store.dtype, device=device)
            mask = torch.where(hidden, float("-inf"), zero)[:, None, None]
        self._blocks.append(Block(slice(first, end), columns, places, mask))
        return end

    def _longest(self) -> int:
        return max((cohort.columns for cohort in self.cohorts), default=0)

    def _reserve(self, rows: int, columns: int, like: Tensor, layers: int) -> None:
        """Makes room; more columns than needed by half, so that growing stays rare, and rows that may yet come."""
        capacity, width = (self._store.shape[0], self._store.shape[4]) if self._store.ndim > 1 else (0, 0)
        if rows <= capacity and columns <= width:
            return
        if columns > width:
            width = -(-max(columns, min(columns * 3 // 2, self._most_columns)) // GRANULE) * GRANULE
        capacity = max(rows, min(self._rows, self._tokens // width))
        shape = (capacity, like.shape[1], layers, 2, width, like.shape[-1])
        store = _zeros(shape, like)  # finite where masked: 0 * nan is nan
        if self.count:
            used = self._longest()
            store[: self.count, :, :, :, :used] = self._store[: self.count, :, :, :, :used]
        self._store = store


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """As `torch.zeros`, which writes all of it at once (40 ms for 50 MB); numpy's is zero where it is first read."""
    if like.device.type != "cpu":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    memory = np.zeros(math.prod(shape) * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(like.dtype).view(shape)


def _stack(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Outputs and logarithms of sums of neighbouring rows, one after another."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts]), torch.cat([log_sum for _, log_sum in parts])
