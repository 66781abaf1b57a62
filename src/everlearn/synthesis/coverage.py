"""Rows that together hold what all candidates hold, in its proportions: greedy, by the likelihood of the candidates.

Rows near the centres of clusters are typical, and typical rows share their words: thirty of them can leave a sixth of
a task's words out, which are then forgotten. So the next row is always the one after which the chosen rows, taken as
a model of single character 4-grams with smoothing, give all candidates the highest likelihood. A rare 4-gram that is
missing weighs more than a common one that is there already, an odd one that hardly any candidate has weighs nothing,
and the chosen rows' length divides what they gain, so that long rows are no better than short ones.

Chosen here, after "cynical" data selection (Axelrod, arXiv 1709.02279, from memory); no part of SSR as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from everlearn.synthesis.similarity import membership

if TYPE_CHECKING:
    from everlearn.progress import Tick

SMOOTHING = 0.1
"""Counted of each 4-gram before any row is chosen. Chosen here: thirty rows of the embedded stream's `ruvian` hold all
of its 44 words (with 0.5: 43; K-means: 38)."""


def coverage_order(texts: Sequence[str], count: int, tick: Tick | None = None) -> list[int]:
    """The first rows of the greedy order; every beginning of it is the choice of that size.

    Args:
        texts: Of the candidates.
        count: How many to choose, at most as many as there are.
        tick: Called with (rows chosen, rows to choose): thousands of them take minutes.

    Returns:
        Indexes; of equal rows the first.
    """
    import numpy as np

    if not texts:
        return []
    matrix, sizes = membership(texts)  # (texts, shingles) of 0 and 1
    shares = np.asarray(matrix.sum(0)).ravel() / matrix.nnz  # (shingles,)
    held = np.full(matrix.shape[1], SMOOTHING)
    length = SMOOTHING * matrix.shape[1]
    is_left = np.ones(len(texts), dtype=bool)
    chosen = []
    wanted = min(count, len(texts))
    for _ in range(wanted):
        gains = matrix @ (shares * np.log((held + 1) / held)) - np.log(length + sizes)
        best = int(np.argmax(np.where(is_left, gains, -np.inf)))
        chosen.append(best)
        if tick:
            tick(len(chosen), wanted)
        is_left[best] = False
        held[matrix.indices[matrix.indptr[best] : matrix.indptr[best + 1]]] += 1
        length += sizes[best]
    return chosen
