"""The closed set of answers of a classification task, and the spellings that are one label.

Accuracy trims white space and ignores case, so spellings that differ in these are one label; so are Unicode's forms of
the same letters and letters that cannot be seen. A label is written as most training rows write it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from everlearn.data.instance import Instance

_FEW_LABELS = 20  # chosen here: up to so many, any labels; more only if they are given again and again
_LABEL_CHARACTERS = 40  # chosen here: names of classes are shorter, sentences longer
_ROWS_PER_LABEL = 3  # chosen here: fewer rows per distinct answer look like free text
_ONCE = 0.25  # chosen here: most share of answers given once; of names and numbers that are free text, half are
_OUTSIDE = 0.1  # chosen here: most share of evaluation answers that no training row has
_INVISIBLE = dict.fromkeys(map(ord, "\N{SOFT HYPHEN}\u200b\u200e\u200f\u2060\ufeff"))
_MINDS_CASE = ("rouge_l", "rouge_1")


def ignores_case(metric: str) -> bool:
    """Whether a main metric takes `Yes` for `yes`, as all but SSR's forms of ROUGE do."""
    return metric not in _MINDS_CASE


def folded(text: str, ignore_case: bool) -> str:
    """What spellings of one label have in common."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    text = " ".join(text.split())
    return text.lower() if ignore_case else text


class Spellings:
    """Knows labels in other spellings, as far as these tell the labels apart.

    Args:
        labels: As they are to be written.
        ignore_case: Whether capitals make no other label.
    """

    def __init__(self, labels: Sequence[str], ignore_case: bool) -> None:
        self.labels = tuple(labels)
        self._exact = dict(zip(labels, labels, strict=True))
        self._ignore_case = ignore_case and len({folded(label, True) for label in labels}) == len(labels)
        self._folded = {folded(label, self._ignore_case): label for label in labels}
        if len(self._folded) < len(labels):
            self._folded = {}

    def label(self, text: str) -> str | None:
        """The label that a text is a spelling of, or None."""
        return self._exact.get(text) or self._folded.get(folded(text, self._ignore_case))

    def join(self, rows: Iterable[Instance], joined: dict[str, dict[str, int]]) -> tuple[Instance, ...]:
        """Rows with their labels in one spelling; the others are counted, label by label."""
        return tuple(self._joined(row, joined) for row in rows)

    def _joined(self, row: Instance, joined: dict[str, dict[str, int]]) -> Instance:
        label = self.label(row.output)
        references = tuple(self.label(text) or text for text in row.references)
        if label in (None, row.output) and references == row.references:
            return row
        if label is not None and label != row.output:
            spellings = joined.setdefault(label, {})
            spellings[row.output] = spellings.get(row.output, 0) + 1
        return replace(row, output=label or row.output, references=references)


def find_labels(
    train: Sequence[Instance], evaluation: Sequence[Instance], ignore_case: bool = True
) -> tuple[tuple[str, ...], str]:
    """The closed set of answers of a classification task, sorted; empty when the outputs look like free text.

    They are labels when the training rows have at least 2 distinct outputs of one short line and at least three rows
    for each on average, more than 20 only if at most a quarter of them is given once, and when at most a tenth of the
    evaluation rows has another.

    Returns:
        The labels, and why they are or are none, as a clause.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        spellings[folded(row.output, ignore_case)][row.output] += 1
    count = len(spellings)
    if count < 2:
        return (), "all training answers are the same"
    if any(len(text) > _LABEL_CHARACTERS for text in spellings) or any("\n" in row.output.strip() for row in train):
        return (), f"answers of more than {_LABEL_CHARACTERS} letters or one line"
    if len(train) < _ROWS_PER_LABEL * count:
        return (), f"{count} distinct answers in {len(train)} training rows, too many for labels"
    once = sum(written.total() == 1 for written in spellings.values())
    if count > _FEW_LABELS and once > _ONCE * count:
        return (), f"{count} distinct answers, {once} of them given once, too many for labels"
    outside = sum(folded(row.output, ignore_case) not in spellings for row in evaluation)
    if outside > _OUTSIDE * len(evaluation):
        return (), f"{outside} of {len(evaluation)} evaluation answers are no training answers"
    labels = sorted(written.most_common(1)[0][0] for written in spellings.values())
    return tuple(labels), f"{count} distinct short answers in {len(train)} training rows"
