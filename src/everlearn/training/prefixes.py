"""Which rows of a batch are computed together, and which beginning they share.

The rows of a task begin with the same instruction, so a batch is split into groups with a common prefix, in the way
that saves most tokens; a group's prefix is then computed once (`packing.py`). A batch that is too large for the
memory at hand is split into micro-batches of about equal size, and a group that spans two repeats its prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from everlearn.training.rows import EncodedRow

LEAST_SAVING = 16
"""Tokens that a shared prefix must save; below, one more sequence in attention costs more."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows with a common prefix of `prefix_length` tokens (0: none)."""

    prefix_length: int
    rows: tuple[EncodedRow, ...]

    @property
    def tokens(self) -> int:
        """Tokens computed: the prefix once, the last token of an answer never."""
        return self.prefix_length + sum(row.computed - self.prefix_length for row in self.rows)


def split_batch(rows: Sequence[EncodedRow], most_tokens: int) -> list[list[Group]]:
    """Splits a batch into as few micro-batches of at most `most_tokens` tokens as it takes, of about equal size.

    A row longer than that is one alone.
    """
    groups = sorted(shared_prefixes(rows), key=lambda group: -group.tokens)
    parts = _filled(groups, most_tokens)
    low, high = most_tokens // 2, most_tokens
    while len(parts) > 1 and high - low > most_tokens // 16:
        bound = (low + high) // 2
        tighter = _filled(groups, bound)
        if len(tighter) == len(parts):
            parts, high = tighter, bound
        else:
            low = bound
    return parts


def _filled(groups: Sequence[Group], most_tokens: int) -> list[list[Group]]:
    """Fills one micro-batch after the other; a group that does not fit goes on in the next, its prefix repeated."""
    batches: list[list[Group]] = [[]]
    room = most_tokens
    for group in groups:
        waiting = list(group.rows)
        while waiting:
            taken, cost = 0, group.prefix_length
            while taken < len(waiting):
                more = waiting[taken].computed - group.prefix_length
                if cost + more > room:
                    break
                cost, taken = cost + more, taken + 1
            if taken == 0 and batches[-1]:
                batches.append([])
                room = most_tokens
                continue
            taken = max(taken, 1)
            batches[-1].append(Group(group.prefix_length if taken > 1 else 0, tuple(waiting[:taken])))
            room -= batches[-1][-1].tokens
            waiting = waiting[taken:]
    return batches


def shared_prefixes(rows: Sequence[EncodedRow]) -> list[Group]:
    """The split into groups that saves most tokens.

    Rows are sorted by their tokens; a group is a run of neighbours, its prefix what all have in common. A prefix
    ends before the last prompt token, so every prediction is made from a row's own tokens.
    """
    rows = sorted(rows, key=lambda row: row.ids)
    prompts = [np.array(row.ids[: max(row.prompt_length - 1, 0)], dtype=np.int64) for row in rows]
    common = [_common(a, b) for a, b in pairwise(prompts)]
    best = [0] * (len(rows) + 1)  # tokens saved among the first `end` rows
    cut = [0] * (len(rows) + 1)  # where the last group of the best split begins
    for end in range(1, len(rows) + 1):
        best[end], cut[end] = best[end - 1], end - 1
        shared = len(prompts[end - 1])
        for start in range(end - 2, -1, -1):
            shared = min(shared, common[start])
            if shared == 0:
                break
            saved = best[start] + (end - start - 1) * shared - LEAST_SAVING
            if saved > best[end]:
                best[end], cut[end] = saved, start
    groups = []
    end = len(rows)
    while end:
        start = cut[end]
        length = min(common[start : end - 1]) if end - start > 1 else 0
        groups.append(Group(length, tuple(rows[start:end])))
        end = start
    return groups[::-1]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
