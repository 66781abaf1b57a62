"""How alike a translation is to its reference, in [0, 1]: character n-grams, BLEU, exact match.

`chrf` is chrF2 (Popović 2015, 2017) with sacrebleu's defaults (2.6.0: n-grams up to 6 characters without white space,
beta 2, orders that a text is too short for left out), written out here so that a reward needs no package; tests hold
it to sacrebleu's values. `bleu` is sacrebleu's own, sentence by sentence with effective order.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

from everlearn.errors import MissingExtraError

_ORDER, _BETA = 6, 2


def chrf(hypothesis: str, reference: str) -> float:
    """Sentence chrF2 / 100."""
    precisions = recalls = 0.0
    orders = 0
    for order in range(1, _ORDER + 1):
        written, given = _ngrams(hypothesis, order), _ngrams(reference, order)
        if not (written and given):
            continue
        common = (written & given).total()
        precisions += common / written.total()
        recalls += common / given.total()
        orders += 1
    if not orders or not precisions + recalls:
        return 0.0
    precision, recall = precisions / orders, recalls / orders
    return (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)


def bleu(hypothesis: str, reference: str) -> float:
    """Sentence BLEU / 100.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    try:
        from sacrebleu import sentence_bleu
    except ModuleNotFoundError:
        raise MissingExtraError(
            "scorer bleu needs sacrebleu: run \"pip install 'everlearn[rl]'\", or set the scorer to chrf."
        ) from None
    return float(sentence_bleu(hypothesis, [reference]).score) / 100


def exact(hypothesis: str, reference: str) -> float:
    """1 where both are the same text but for Unicode's forms (NFC) and white space."""
    return float(_plain(hypothesis) == _plain(reference))


def _ngrams(text: str, order: int) -> Counter[str]:
    letters = "".join(text.split())
    return Counter(letters[at : at + order] for at in range(len(letters) - order + 1))


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
