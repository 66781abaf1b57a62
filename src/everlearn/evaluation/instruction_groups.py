"""Groups of tasks whose instructions are alike, and the group that an instruction belongs to (LCIA).

Two texts are compared by the cosine of their TF-IDF vectors, fitted on these two alone (scikit-learn's defaults and
English stop words). A word in both then weighs 1 and a word in one K = 1 + ln 1.5, so with counts n(w)

    cos(x, y) = sum_{w in both} n_x n_y / sqrt(N_x N_y),   N_x = sum_{w in both} n_x^2 + K^2 sum_{w in x alone} n_x^2

which needs no fitting, and comes for all pairs from a few products of matrices. A text without such words is like
nothing (0). Two sets of texts are as alike as the mean over all pairs, so a set of n wordings that differ is alike to
itself by about 1 / n only.

A task whose instructions reach the threshold joins the group that they are most like, the first of equals, and adds
those that are new to it; any other opens a group. An instruction that reaches the threshold with no group is
answered by the newest.

Source: LCIA's published code (JingyangQiao/CoIN, `LoRASelect.py`; MIT), which fits each pair. The closed form is our
derivation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from everlearn.data.instance import Instance

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

RARE = (1 + math.log(1.5)) ** 2
"""The square of K."""
_CELLS = 1 << 22  # of a block of pairs

InstructionText = Literal["field", "last_line", "last_line_to_colon", "second_line", "whole"]
"""Which text of a row is its instruction. `field`: its own, white space as single spaces; of a row without one the
first line of what is asked. The others take it out of all that is asked, as the published code does by data set."""


def instruction_of(row: Instance, which: InstructionText) -> str:
    """The text of a row that says what to do."""
    if which == "field":
        return " ".join((row.instruction.strip() or row.input.strip().split("\n")[0]).split())
    return taken_out(row.query, which)


def taken_out(prompt: str, which: InstructionText) -> str:
    """The part of a prompt that says how to answer.

    Source: the published code, which takes the last line for question answering, that up to its colon for grounding,
    and the second line (of test rows all) for classification.
    """
    lines = prompt.split("\n")
    if which == "whole":
        return prompt
    if which == "second_line":
        return lines[min(1, len(lines) - 1)].strip()
    last = lines[-1].strip()
    return last.split(":")[0].strip() if which == "last_line_to_colon" else last


def instructions_of(rows: Iterable[Instance], which: InstructionText) -> list[str]:
    """Those of rows, each once, in order."""
    return list(dict.fromkeys(instruction_of(row, which) for row in rows))


def stop_words() -> list[str]:
    """scikit-learn's English ones, sorted."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return sorted(ENGLISH_STOP_WORDS)


def similarities(texts: Sequence[str], groups: Sequence[Sequence[str]], stops: Sequence[str]) -> np.ndarray:
    """How alike each text is to each group: the mean over the group's texts.

    Args:
        texts: To be compared.
        groups: The texts of each.
        stops: Words that do not count.

    Returns:
        (texts, groups), between 0 and 1.
    """
    import numpy as np

    every = list(dict.fromkeys([*texts, *(text for group in groups for text in group)]))
    place = {text: at for at, text in enumerate(every)}
    counts = _counts(every, stops)
    own = counts[[place[text] for text in texts]]
    found = np.zeros((len(texts), len(groups)))
    for at, group in enumerate(groups):
        others = counts[[place[text] for text in group]]
        size = max(1, _CELLS // len(group))
        for begin in range(0, len(texts), size):
            found[begin : begin + size, at] = _cosines(own[begin : begin + size], others).mean(axis=1)
    return found


def _counts(texts: Sequence[str], stops: Sequence[str]) -> csr_matrix:
    """How often each word stands in each text, (texts, words)."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(stop_words=list(stops)).build_analyzer()
    known: dict[str, int] = {}
    entries = [
        (at, known.setdefault(word, len(known)), float(count))
        for at, text in enumerate(texts)
        for word, count in Counter(words(text)).items()
    ]
    rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
    return csr_matrix((values, (rows, columns)), shape=(len(texts), max(1, len(known))), dtype=float)


def _cosines(one: csr_matrix, other: csr_matrix) -> np.ndarray:
    """Of all pairs, (texts of the one, texts of the other)."""
    import numpy as np

    def norms(mine: csr_matrix, others: csr_matrix) -> np.ndarray:  # N, (mine, others); exact for equal texts
        squares = mine.multiply(mine).tocsr()
        shared = (squares @ (others > 0).astype(float).T).toarray()
        return np.asarray(shared + RARE * (np.asarray(squares.sum(axis=1)) - shared))

    product = (one @ other.T).toarray()
    lengths = np.sqrt(norms(one, other) * norms(other, one).T)
    return np.divide(product, lengths, out=np.zeros_like(product), where=product > 0)


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a task.

    Attributes:
        group: 1-based; in order of age.
        is_new: Whether it opened the group.
        similarities: To the groups that there were.
    """

    group: int
    is_new: bool
    similarities: tuple[float, ...]


def grouped(
    tasks: Sequence[Sequence[str]], threshold: float, stops: Sequence[str]
) -> tuple[list[Decision], list[list[str]]]:
    """Puts tasks into groups in order of arrival.

    Args:
        tasks: The distinct instructions of each.
        threshold: Least similarity of a task to its group.
        stops: Words that do not count.

    Returns:
        A decision for each task, and the instructions of each group in the end.
    """
    decisions: list[Decision] = []
    groups: list[list[str]] = []
    for texts in tasks:
        texts = list(dict.fromkeys(texts))
        found = [float(value) for value in similarities(texts, groups, stops).mean(axis=0)]
        best = max(range(len(found)), key=found.__getitem__, default=None)  # the first of equals
        is_new = best is None or found[best] < threshold
        if is_new or best is None:
            groups.append(texts)
        else:
            groups[best] += [text for text in texts if text not in groups[best]]
        group = len(groups) if is_new or best is None else best + 1
        decisions.append(Decision(group, is_new, tuple(found)))
    return decisions, groups


def routed(
    texts: Sequence[str], groups: Sequence[Sequence[str]], threshold: float, stops: Sequence[str], *, alone: bool
) -> list[tuple[int, bool]]:
    """The group that answers each text.

    Args:
        texts: Instructions.
        groups: Those of each group.
        threshold: Least similarity; below it the newest group answers.
        stops: Words that do not count.
        alone: Whether each text is looked at by itself, else all of them together.

    Returns:
        For each text the group (1-based), and whether it is the newest for want of one that is like it.
    """
    found = similarities(texts, groups, stops)
    if not alone:
        found[:] = found.mean(axis=0)
    best = found.argmax(axis=1)  # the first of equals
    is_like = found.max(axis=1) >= threshold
    return [(int(at) + 1 if like else len(groups), not like) for at, like in zip(best, is_like.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """Where a stage of grouped tasks starts from.

    Attributes:
        group: Its task's, 1-based.
        is_new: Whether it opens the group.
        start: 1-based stage whose weights it starts from; 0: the base.
        averages: Whether its weights are averaged: from a group's second stage on.
    """

    group: int
    is_new: bool
    start: int
    averages: bool


def planned(groups: Sequence[int], expand_init: Literal["latest", "fresh"]) -> list[PlannedStage]:
    """The stages of tasks by their groups: a group goes on from its last stage, a new one from the latest or the base.

    Source: the published training scripts (start of a new group: `latest`).
    """
    plan: list[PlannedStage] = []
    last: dict[int, int] = {}
    for index, group in enumerate(groups, 1):
        is_new = group not in last
        start = last.get(group, index - 1 if expand_init == "latest" else 0)
        plan.append(PlannedStage(group, is_new, start, averages=not is_new))
        last[group] = index
    return plan


def last_stages(groups: Sequence[int]) -> dict[int, int]:
    """Group to the stage whose weights are its own in the end."""
    return {group: index for index, group in enumerate(groups, 1)}
