"""Which candidates are rehearsed: rows near the centres of clusters, or a random draw.

Published: embeddings L2-normalised, K-means (k-means++, one start, numpy's generator seeded with 0), from cluster c
with n_c of N rows the `round(M * n_c / N)` rows nearest to its centre, clusters in order, nearest first; the counts
need not add up to M. Where M equals the number of clusters, the Alpaca script takes one row of each. `supervised`
(an ablation) fits the clusters on the embeddings of real rows. `random` draws M rows with numpy's generator seeded
with 0.
Source: arXiv 2403.01244, section 3.4 and the released scripts (spec section 3); published default: K-means.

`drawn` is another published rule, of SERS (`select_drawn`).

Chosen here, for the improved preset: counts by largest remainder, which add up to M, and an order in which every
beginning of the list is spread over the clusters, so that rows can be taken from its front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SEED = 0  # as published; the drawn rows depend on the embeddings alone


@dataclass(frozen=True, slots=True)
class Chosen:
    """One selected row: its index, its cluster and its distance from the cluster's centre (None: drawn at random)."""

    index: int
    cluster: int | None = None
    distance: float | None = None


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Rows (count, width) of length 1; a row of zeros stays as it is."""
    import numpy as np

    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    normalised: np.ndarray = embeddings / np.where(lengths == 0, 1, lengths)
    return normalised


def fit_clusters(
    normalised: np.ndarray, count: int, state: np.random.RandomState | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """K-means as published.

    Args:
        normalised: Rows of length 1, (rows, width); at least `count` of them.
        count: Number of clusters.
        state: Numpy's generator, for those who go on drawing from it; None: one seeded with 0.

    Returns:
        The cluster of each row, (rows,), and the centres, (count, width).
    """
    import warnings

    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows, which the faithful preset has
        state = state or np.random.RandomState(SEED)
        model = KMeans(n_clusters=count, n_init="auto", random_state=state).fit(normalised)
    return model.labels_, model.cluster_centers_


def nearest_clusters(normalised: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each row, (rows,)."""
    import numpy as np

    squared = (centres**2).sum(1) - 2 * normalised @ centres.T  # (rows, clusters); the rows' own length is left out
    nearest: np.ndarray = np.argmin(squared, axis=1)
    return nearest


def published_counts(sizes: Sequence[int], wanted: int, *, one_each: bool = False) -> list[int]:
    """Rows to take of each cluster: `round(wanted * size / all)`, halves to even.

    Args:
        sizes: Rows in each cluster.
        wanted: M.
        one_each: Take one row of each cluster when M is their number (Alpaca script).
    """
    if one_each and wanted == len(sizes):
        return [1] * len(sizes)
    total = sum(sizes)
    return [round(wanted * size / total) for size in sizes]


def largest_remainder(shares: Sequence[int], wanted: int) -> list[int]:
    """Whole numbers in the proportion of the shares that add up to `wanted`; of equal remainders the first gains."""
    total = sum(shares)
    parts = [wanted * share // total for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda at: (-(wanted * shares[at] % total), at))
    for at in by_remainder[: wanted - sum(parts)]:
        parts[at] += 1
    return parts


def take_nearest(
    normalised: np.ndarray, labels: np.ndarray, centres: np.ndarray, counts: Sequence[int]
) -> list[Chosen]:
    """The rows of each cluster that are nearest to its centre: clusters in order, nearest first.

    Args:
        normalised: Rows of length 1, (rows, width).
        labels: Cluster of each row, (rows,).
        centres: (clusters, width).
        counts: How many rows to take of each cluster; a smaller cluster gives what it has.
    """
    import numpy as np

    distances = np.linalg.norm(normalised - centres[labels], axis=1)
    chosen = []
    for cluster, count in enumerate(counts):
        members = np.flatnonzero(labels == cluster)
        for index in members[np.argsort(distances[members])][:count]:
            chosen.append(Chosen(int(index), cluster, float(distances[index])))
    return chosen


def spread(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Reordered so that every beginning holds the clusters in about the same proportions."""
    sizes: dict[int | None, int] = {}
    for row in chosen:
        sizes[row.cluster] = sizes.get(row.cluster, 0) + 1
    ranks: dict[int | None, int] = {}
    places = []
    for row in chosen:
        rank = ranks[row.cluster] = ranks.get(row.cluster, 0) + 1
        places.append((rank - 0.5) / sizes[row.cluster])
    return [chosen[at] for at in sorted(range(len(chosen)), key=lambda at: places[at])]


def select_clustered(
    embeddings: np.ndarray,
    wanted: int,
    *,
    clusters: int,
    adds_up: bool,
    one_each: bool = False,
    reference: np.ndarray | None = None,
) -> list[Chosen]:
    """K-means selection from embeddings.

    Args:
        embeddings: Of the candidates, not normalised, (rows, width).
        wanted: M, at most the number of rows.
        clusters: At most the number of rows that clusters are fitted on.
        adds_up: Largest remainder and spread order; otherwise as published.
        one_each: See `published_counts`.
        reference: Embeddings of real rows to fit the clusters on (`supervised`).
    """
    import numpy as np

    rows = normalise(embeddings)
    if reference is None:
        labels, centres = fit_clusters(rows, clusters)
    else:
        _, centres = fit_clusters(normalise(reference), clusters)
        labels = nearest_clusters(rows, centres)
    sizes = np.bincount(labels, minlength=len(centres)).tolist()
    if adds_up:
        return spread(take_nearest(rows, labels, centres, largest_remainder(sizes, wanted)))
    return take_nearest(rows, labels, centres, published_counts(sizes, wanted, one_each=one_each))


def select_drawn(embeddings: np.ndarray, wanted: int, *, clusters: int, distinct: bool) -> list[Chosen]:
    """As many rows drawn from each cluster of K-means (SERS, the script for ChatGLM; spec section 4).

    From each cluster `wanted // clusters` rows, or as many as it has, then drawn with repetition as published. Of too
    many some are drawn; too few are filled up from all rows, which may repeat some, as far as there are rows (the
    script stops where there are not).

    Args:
        embeddings: Of the candidates, not normalised, (rows, width).
        wanted: M.
        clusters: C, at most the number of rows.
        distinct: Leave out the repetitions.
    """
    import random

    import numpy as np

    state, draw = np.random.RandomState(SEED), random.Random(SEED)
    labels, _ = fit_clusters(normalise(embeddings), clusters, state)
    each = wanted // clusters
    rows: list[int] = []
    for cluster in range(clusters):
        members = np.flatnonzero(labels == cluster)
        rows += state.choice(members, min(each, len(members)), replace=len(members) < each).tolist()
    if len(rows) > wanted:
        rows = draw.sample(rows, wanted)
    elif len(rows) < wanted:
        rows += draw.sample(range(len(labels)), min(wanted - len(rows), len(labels)))
    kept = dict.fromkeys(rows) if distinct else rows
    return [Chosen(row, int(labels[row])) for row in kept]


def select_random(rows: int, wanted: int) -> list[Chosen]:
    """`wanted` of `rows` rows, drawn as published, in the drawn order."""
    import numpy as np

    drawn = np.random.RandomState(SEED).choice(rows, wanted, replace=False)
    return [Chosen(int(index)) for index in drawn]
