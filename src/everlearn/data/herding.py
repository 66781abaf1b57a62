"""Herding: rows whose mean feature stays as near as can be to that of their class, the most telling first.

With z the L2-normalised features of a class and mu their mean, the k-th row taken is the one that makes
|mu - (z_1 + ... + z_k) / k| smallest. Every beginning of the list is the choice for a smaller quota, so a memory is
cut from the end.
Source: arXiv 1611.07725 (iCaRL), algorithm 4; as in arXiv 2312.07887's released code, mu is not normalised again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def herded(features: np.ndarray, count: int) -> list[int]:
    """Numbers of at most so many rows, in the order in which they are taken.

    Args:
        features: Of the rows of one class, (rows, width).
        count: How many to take.
    """
    import numpy as np

    vectors = features.astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    mean, total = vectors.mean(0), np.zeros(vectors.shape[1])
    taken: list[int] = []
    is_left = np.ones(len(vectors), dtype=bool)
    for number in range(1, min(count, len(vectors)) + 1):
        distances = np.linalg.norm(mean - (total + vectors) / number, axis=1)
        at = int(np.where(is_left, distances, np.inf).argmin())
        taken.append(at)
        is_left[at] = False
        total += vectors[at]
    return taken
