"""By which factor the summed cross-entropy of a row enters the loss of its step.

It depends on the rows of the whole step alone, never on how the step is computed: see `everlearn.data.mixture.Mean`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everlearn.data.mixture import OWN, Mean, Mixture
from everlearn.training.rows import EncodedRow

Share = tuple[float, Mean, str]
"""Weight and mean of a group, and the name of the group that it is averaged with."""


def shares_of(mixture: Mixture) -> dict[str, Share] | None:
    """The share of each group by its name; None: all rows are averaged over their answer tokens together."""
    if mixture.own is None and all(group.weight == 1.0 and group.mean == "tokens" for group in mixture.groups):
        return None
    own_weight, own = mixture.own or (1.0, "tokens")

    def share(name: str, weight: float, mean: Mean) -> Share:
        return (weight, own, OWN) if mean == "tokens" else (weight, mean, name)

    named = {group.name: share(group.name, group.weight, group.mean) for group in mixture.groups}
    return {OWN: share(OWN, own_weight, own), **named}


def row_factors(rows: Sequence[EncodedRow], shares: Mapping[str, Share] | None) -> dict[int, float] | None:
    """The factor of each row of a step, by its `id`; None: 1 / answer tokens of the step for all.

    Args:
        rows: All rows of the step.
        shares: Of the groups.
    """
    if shares is None:
        return None
    of_rows = [shares[row.group] for row in rows]
    tokens: dict[str, int] = {}
    for row, (_, _, name) in zip(rows, of_rows, strict=True):
        tokens[name] = tokens.get(name, 0) + row.answer_count
    by_rows = sum(mean == "rows" for _, mean, _ in of_rows)
    by_groups = sum(shares[name][0] for name in {name for _, mean, name in of_rows if mean == "groups"})
    factors = {}
    for row, (weight, mean, name) in zip(rows, of_rows, strict=True):
        count = row.answer_count * by_rows if mean == "rows" else tokens[name]
        factors[id(row)] = weight / count / (by_groups if mean == "groups" else 1)
    return factors
