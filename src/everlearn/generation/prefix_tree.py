"""Which prefixes of a set of prompts are worth computing once.

All shared prefixes of sorted prompts form a tree; a node of it becomes a node here when computing it once saves
enough tokens to pay for a forward pass of its own. SSR's prompts (all ordered pairs of demonstrations) give the
definition, below it each first demonstration; evaluation prompts give the instruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LEAST_SAVED_TOKENS = 64
"""A node must save so many tokens of prefill; chosen here: about what one small forward pass costs."""

LEAST_SAVED_READS = 512
"""Or spare its rows the reading of so many cached tokens at each step; chosen here alike."""

LEAST_ROWS = 8
"""A node for fewer rows must save `LEAST_SAVED_READS` tokens: each node in a batch costs time at every step."""


@dataclass(frozen=True, eq=False)
class Node:
    """A prefix computed once.

    Attributes:
        parent: The shorter prefix that it continues; None: it begins with the first token.
        token_ids: The tokens after the parent's.
        depth: Tokens from the first on.
    """

    parent: Node | None
    token_ids: tuple[int, ...]
    depth: int


def plan(prompts: Sequence[Sequence[int]], copies: int = 1) -> list[tuple[Node | None, list[int]]]:
    """Puts prompts in an order in which neighbours share prefixes.

    Args:
        prompts: Token ids, none empty.
        copies: Completions of each prompt.

    Returns:
        Nodes with the indexes of the prompts right below them (not below a deeper node), a parent's descendants
        following it without a gap. The last token of a prompt is never part of a node, since its logits are needed.
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    ids = [np.asarray(prompts[i], dtype=np.int64) for i in order]
    lengths = np.array([len(row) for row in ids])
    common = np.array([_common(a, b) for a, b in pairwise(ids)], dtype=np.int64)
    below: dict[Node | None, list[int]] = {None: []}
    for node, first, end in _walk(ids, lengths, common, copies):
        below.setdefault(node, []).extend(order[first:end])
    return [(node, rows) for node, rows in below.items() if rows]


def _walk(
    ids: list[np.ndarray], lengths: np.ndarray, common: np.ndarray, copies: int
) -> Iterator[tuple[Node | None, int, int]]:
    """Ranges of the sorted prompts with the deepest node above them, depth first."""
    pending: list[tuple[int, int, Node | None]] = [(0, len(ids), None)]
    while pending:
        first, end, parent = pending.pop()
        count = end - first
        shared = int(common[first : end - 1].min()) if count > 1 else int(lengths[first])
        depth = min(shared, int(lengths[first:end].min()) - 1)
        above = parent.depth if parent else 0
        saved = (depth - above) * (count - 1)
        unread = (depth - above) * (count * copies - 1)
        if _pays(saved, unread, count * copies):
            parent = Node(parent, tuple(int(token) for token in ids[first][above:depth]), depth)
        if count == 1:
            yield parent, first, end
            continue
        cuts = [first, *(first + 1 + np.flatnonzero(common[first : end - 1] == shared)).tolist(), end]
        singles: list[tuple[int, int]] = []
        ranges: list[tuple[int, int]] = []
        for low, high in pairwise(cuts):
            (ranges if high - low > 1 else singles).append((low, high))
        for low, high in singles:
            yield parent, low, high
        pending += [(low, high, parent) for low, high in reversed(ranges)]


def _pays(saved: int, unread: int, rows: int) -> bool:
    if rows < LEAST_ROWS:
        return saved >= LEAST_SAVED_READS
    return saved >= LEAST_SAVED_TOKENS or unread >= LEAST_SAVED_READS


def _common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    position = int(different.argmax()) if length else 0
    return position if length and different[position] else length
