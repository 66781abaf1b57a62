"""The keys and values that belong to single rows, in one preallocated tensor, and attention one token further.

Transformers' own cache copies everything cached at every step, because it appends by concatenation; here a step
writes one column. The layout (rows, key heads, layers, 2, columns, width) keeps a row in one piece, so that taking
rows out is one copy for each row moved, and lets a layer's keys be viewed as a batch of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from everlearn.generation.partial_attention import attend_part, attend_shared, fold_groups, join_parts
from everlearn.generation.shared_cache import Segment

GRANULE = 64
"""Columns are allocated in multiples of this; chosen here."""


@dataclass(slots=True)
class Group:
    """Neighbouring rows, `first` to before `end`, that share a prefix."""

    first: int
    end: int
    segment: Segment | None


class RowStore:
    """Rows of a running batch. Their own tokens lie in columns [start, end); `end` is the next to be written."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.count = 0
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._store = torch.empty(0)
        self._columns = 0
        self._written: int | None = None  # the column that all rows write at this step, where it is one
        self._mask: Tensor | None = None  # (rows, 1, 1, columns), 0 or minus infinity

    def longest(self) -> int:
        """Columns in use."""
        return max(self._ends, default=0)

    def add(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        pads: Sequence[int],
        copies: int,
        segment: Segment | None,
    ) -> None:
        """Appends `copies` rows for each prompt.

        Args:
            keys: For each layer (prompts, key heads, length, width).
            values: Alike.
            pads: Columns of padding on the left of each prompt.
            copies: Rows of each prompt.
            segment: The prefix that these prompts share.
        """
        prompts, key_heads, length, width = keys[0].shape
        first, end = self.count, self.count + prompts * copies
        self._reserve(end, length + 1, keys[0], len(keys))
        for layer in range(len(keys)):
            for kind, states in enumerate((keys[layer], values[layer])):
                target = self._store[first:end, :, layer, kind, :length]
                target.view(prompts, copies, key_heads, length, width).copy_(states[:, None])
        self.count = end
        self._starts += [pad for pad in pads for _ in range(copies)]
        self._ends += [length] * (end - first)
        if self.groups and self.groups[-1].segment is segment:
            self.groups[-1].end = end
        else:
            self.groups.append(Group(first, end, segment))

    def begin_step(self) -> None:
        """Prepares one more column in every row."""
        ends, starts = self._ends, self._starts
        self._columns = max(ends) + 1
        self._reserve(self.count, self._columns, self._store, self._store.shape[2])
        uniform = min(ends) + 1 == self._columns
        self._written = ends[0] if uniform else None
        self._mask = None
        device = self._store.device
        if not uniform:
            self._rows = torch.arange(self.count, device=device)
            self._end = torch.tensor(ends, device=device)
        if not uniform or any(starts):
            columns = torch.arange(self._columns, device=device)
            hidden = columns < torch.tensor(starts, device=device)[:, None]
            if not uniform:
                hidden = hidden | (columns > self._end[:, None])
            zero = torch.zeros((), dtype=self._store.dtype, device=device)
            self._mask = torch.where(hidden, float("-inf"), zero)[:, None, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Writes the new column and attends to prefix and row."""
        rows, key_heads = self.count, key.shape[1]
        layers = self._store[:rows, :, layer]  # (rows, key heads, 2, columns, width)
        if self._written is not None:
            layers[:, :, 0, self._written] = key[:, :, 0]
            layers[:, :, 1, self._written] = value[:, :, 0]
        else:
            layers[:, :, 0][self._rows, :, self._end] = key[:, :, 0]
            layers[:, :, 1][self._rows, :, self._end] = value[:, :, 0]
        folded = fold_groups(query, key_heads)
        own_keys, own_values = layers[:, :, 0, : self._columns], layers[:, :, 1, : self._columns]
        out, log_sum = attend_part(folded, own_keys, own_values, scale, self._mask)
        if len(self.groups) == 1 and (segment := self.groups[0].segment) is not None:
            shared, shared_sum = attend_shared(folded, segment.keys[layer], segment.values[layer], scale)
            out = join_parts(out, log_sum, shared, shared_sum)
        elif len(self.groups) > 1:
            out = self._join_groups(layer, folded, out, log_sum, scale)
        return out.reshape(query.shape)

    def end_step(self) -> None:
        """The column is written in all layers."""
        self._ends = [end + 1 for end in self._ends]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, which come in ascending order."""
        used = self.longest()
        if self._store.device.type == "cpu":
            for target, source in enumerate(rows):
                if target != source:
                    self._store[target, :, :, :, :used] = self._store[source, :, :, :, :used]
        else:
            index = torch.tensor(rows, dtype=torch.long, device=self._store.device)
            self._store[: len(rows), :, :, :, :used] = self._store[index, :, :, :, :used]
        self.count = len(rows)
        self._starts = [self._starts[row] for row in rows]
        self._ends = [self._ends[row] for row in rows]
        self._regroup(rows)

    def _regroup(self, rows: Sequence[int]) -> None:
        groups = []
        first = 0
        for group in self.groups:
            end = first + sum(group.first <= row < group.end for row in rows)
            if end > first:
                groups.append(Group(first, end, group.segment))
            first = end
        self.groups = groups

    def _join_groups(self, layer: int, folded: Tensor, out: Tensor, log_sum: Tensor, scale: float) -> Tensor:
        joined = out.clone()
        for group in self.groups:
            if group.segment is None:
                continue
            part = slice(group.first, group.end)
            segment = group.segment
            shared = attend_shared(folded[part], segment.keys[layer], segment.values[layer], scale)
            joined[part] = join_parts(out[part], log_sum[part], *shared)
        return joined

    def _reserve(self, rows: int, columns: int, like: Tensor, layers: int) -> None:
        """Makes room; a new tensor is larger than needed by half, so that growing stays rare."""
        capacity, width = (self._store.shape[0], self._store.shape[4]) if self._store.ndim > 1 else (0, 0)
        if rows <= capacity and columns <= width:
            return
        new_rows = max(rows, capacity)
        if columns > width:
            width = -(-columns * 3 // 2 // GRANULE) * GRANULE
        key_heads, head_width = like.shape[1], like.shape[-1]
        store = torch.empty((new_rows, key_heads, layers, 2, width, head_width), dtype=like.dtype, device=like.device)
        if self.count:
            used = self.longest()
            store[: self.count, :, :, :, :used] = self._store[: self.count, :, :, :, :used]
        self._store = store
