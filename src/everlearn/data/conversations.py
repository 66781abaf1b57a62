"""Which rows belong together, so that no half of them is held out: the answers of one conversation, and conversations
that share a question.

Two rows are linked when they come from one row of the file or carry the same id, and when they ask the same after the
same turns (also where one of them has it among its earlier turns). They are linked too when a question has the same
answer in both, whatever stood before it, unless that ties most of the rows together: then it is a phrase ("thanks").
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace

from everlearn.data.instance import Instance
from everlearn.data.labels import Spellings
from everlearn.data.samples import first_rows, rows_of_each
from everlearn.shares import share_of

_MOST_OF = 0.5  # a group with more of the rows is never held out
_PHRASES = 0.2  # chosen here: answers alike that tie together more of the rows than this are phrases


@dataclass(frozen=True, slots=True)
class Rows:
    """Instances, and for each of them the row of the file that it comes from.

    Attributes:
        instances: In the order of the source.
        units: Equal for the answers of one conversation.
    """

    instances: tuple[Instance, ...]
    units: tuple[Hashable, ...]

    def limited(self, limit: int | None, labels: Sequence[str], *, by_class: bool = False) -> Rows:
        """At most `limit` instances, classes in equal parts, without conversations that the limit would cut.

        Args:
            limit: None: all of them.
            labels: The classes, if any.
            by_class: Whether the parts are equal also where the rows of the classes are mixed.
        """
        if not limit or limit >= len(self.instances):
            return self
        unit = {id(row): unit for row, unit in zip(self.instances, self.units, strict=True)}
        cut = rows_of_each if by_class else first_rows
        kept = cut(self.instances, limit, labels)
        whole, have = Counter(self.units), Counter(unit[id(row)] for row in kept)
        kept = tuple(row for row in kept if have[unit[id(row)]] == whole[unit[id(row)]]) or kept
        return Rows(kept, tuple(unit[id(row)] for row in kept))

    def with_instances(self, instances: tuple[Instance, ...]) -> Rows:
        """The same rows in other words."""
        return replace(self, instances=instances)

    def split(self, ratio: float, seed: int) -> tuple[Rows, Rows] | None:
        """Sets a share of the linked groups aside; None where all rows are one group."""
        group = self._groups(self.units)
        if len(set(group)) < 2:  # ids that all rows share say nothing
            group = self._groups(range(len(self.instances)))
        order = list(dict.fromkeys(group))
        if len(order) < 2:
            return None
        random.Random(seed).shuffle(order)
        count = min(max(1, round(share_of(ratio, len(order)))), len(order) - 1)
        sizes = Counter(group)
        aside = set([name for name in order if sizes[name] <= _MOST_OF * len(group)][:count])
        return self.parted([name in aside for name in group])

    def labelled(self, labels: Spellings, wanted: Collection[str]) -> Rows:
        """The rows of some labels, in whatever spelling."""
        return self._where([labels.label(row.output) in wanted for row in self.instances])

    def parted(self, aside: Sequence[bool]) -> tuple[Rows, Rows]:
        """The rows that are not set aside, and those that are."""
        return self._where([not one for one in aside]), self._where(aside)

    def _groups(self, units: Sequence[Hashable]) -> list[int]:
        asked = [links(row) for row in self.instances]
        group = groups(units, asked)
        tied = groups(units, [one | answered(row) for one, row in zip(asked, self.instances, strict=True)])
        most = max(_PHRASES * len(group), max(Counter(group).values()))
        return tied if max(Counter(tied).values()) <= most else group

    def _where(self, kept: Sequence[bool]) -> Rows:
        pairs = [pair for pair, keep in zip(zip(self.instances, self.units, strict=True), kept, strict=True) if keep]
        return Rows(tuple(row for row, _ in pairs), tuple(unit for _, unit in pairs))


def links(row: Instance) -> set[Hashable]:
    """The questions of a row, each with what stands before it: shared with rows that it must not be parted from."""
    found: set[Hashable] = set()
    before = 0
    for turn in row.history:
        if turn.role == "user":
            found |= {(before, text) for text in _asked(row, turn.content)}
        before = hash((before, turn.role, turn.content))
    return found | {(before, row.query)}


def answered(row: Instance) -> set[Hashable]:
    """The questions of a row, each with its answer."""
    found: set[Hashable] = {(row.query, row.output)}
    asked: tuple[str, ...] = ()
    for turn in row.history:
        if turn.role == "user":
            asked = _asked(row, turn.content)
        elif turn.role == "assistant":
            found |= {(text, turn.content) for text in asked}
    return found


def groups(units: Sequence[Hashable], shared: Sequence[set[Hashable]]) -> list[int]:
    """The group of each row, called by its first row: rows of one unit or that share something, by others too."""
    parent = list(range(len(units)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    first: dict[Hashable, int] = {}
    for at, (unit, keys) in enumerate(zip(units, shared, strict=True)):
        for key in (("unit", unit, None), *keys):
            one, other = sorted((root(at), root(first.setdefault(key, at))))
            parent[other] = one
    return [root(at) for at in range(len(units))]


def _asked(row: Instance, question: str) -> tuple[str, ...]:
    """An earlier question as a row of its own would ask it."""
    return (question, f"{row.instruction}\n\n{question}") if row.instruction else (question,)
