"""Scores of one answer against its references, in percent.

Three ROUGE-L forms stand side by side because their numbers are not comparable: the one that SSR's published numbers
rest on (jieba tokens, case-sensitive, punctuation counts), the word form of the `rouge_score` package (lower case,
ASCII letters and digits only), without the stemming that the Super-NaturalInstructions script adds for English, and
the same over words by Unicode's rules, for scripts that the first takes apart into letters and the second ignores.
With several references the best one counts; SSR's own data has one each.

Source: arXiv 2403.01244, published evaluation (spec section 10); arXiv 2204.07705 and its script compute_metrics.py
for the word form, exact match and token F1.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Sequence

from everlearn.errors import RecipeError, unknown
from everlearn.evaluation.segmentation import counted_tokens, unicode_words, word_tokens
from everlearn.rewards import texts

Metric = Callable[[str, Sequence[str]], float]
"""`metric(prediction, references)` in percent, 0 to 100."""

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence of two token lists (bit-parallel: one long integer is a table row).

    Source: H. Hyyrö, Bit-parallel LCS-length computation revisited (AWOCA 2004).
    """
    positions: dict[str, int] = {}
    for at, token in enumerate(left):
        positions[token] = positions.get(token, 0) | (1 << at)
    everything = (1 << len(left)) - 1
    row = everything
    for token in right:
        matches = row & positions.get(token, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(left) - row.bit_count()


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L in SSR's published form: F over the whole token sequences, rounded to 4 digits."""
    return _best(prediction, references, lambda a, b: _published_lcs_f(counted_tokens(a), counted_tokens(b)))


def rouge_1(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-1 as SSR's code reports it beside ROUGE-L: overlap of distinct tokens, rounded to 4 digits."""
    return _best(prediction, references, lambda a, b: _published_set_f(counted_tokens(a), counted_tokens(b)))


def rouge_l_word(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 as the `rouge_score` package computes it without stemming."""
    return _best(prediction, references, lambda a, b: _lcs_f1(word_tokens(a), word_tokens(b)))


def rouge_l_unicode(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 over words of any script by Unicode's rules."""
    return _best(prediction, references, lambda a, b: _lcs_f1(unicode_words(a), unicode_words(b)))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """100 when the normalised answer equals a normalised reference.

    As in Super-NaturalInstructions, but for texts of which nothing but punctuation is there: those are compared as
    they are, so that `-` is no match for `+`.
    """
    return _best(prediction, references, lambda a, b: 100.0 * (_comparable(a) == _comparable(b)))


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """100 when the answer is the gold label, white space trimmed and case ignored; `positive.` is not `positive`."""
    return _best(prediction, references, lambda a, b: 100.0 * (a.strip().lower() == b.strip().lower()))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the normalised words, counted with repetition.

    The F1 of SQuAD (arXiv 1606.05250) in the form of the Super-NaturalInstructions script, which keeps the articles
    `a`, `an` and `the`: they may be the answer.
    """
    return _best(prediction, references, lambda a, b: _overlap_f1(_comparable(a).split(), _comparable(b).split()))


def chrf(prediction: str, references: Sequence[str]) -> float:
    """Sentence chrF2 with sacrebleu's defaults (`everlearn.rewards.texts`)."""
    return _best(prediction, references, lambda a, b: 100.0 * texts.chrf(a, b))


def normalised(text: str) -> str:
    """Lower case, ASCII punctuation removed, white space squeezed (Super-NaturalInstructions' normalisation)."""
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


METRICS: dict[str, Metric] = {
    "rouge_l": rouge_l,
    "rouge_1": rouge_1,
    "rouge_l_word": rouge_l_word,
    "rouge_l_unicode": rouge_l_unicode,
    "exact_match": exact_match,
    "accuracy": accuracy,
    "token_f1": token_f1,
    "chrf": chrf,
}


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        RecipeError: no such metric; names the nearest.
    """
    if name not in METRICS:
        raise RecipeError(f"metric: {unknown('metric', name, METRICS)}")
    return METRICS[name]


def _best(prediction: str, references: Sequence[str], score: Callable[[str, str], float]) -> float:
    assert references, "an answer is scored against at least one reference"
    return max(score(prediction, reference) for reference in references)


def _published_lcs_f(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    if not hypothesis or not reference:
        return 0.0
    common = longest_common_subsequence(hypothesis, reference)
    return _published_f(common / len(hypothesis), common / len(reference))


def _published_set_f(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    if not hypothesis or not reference:
        return 0.0
    left, right = set(hypothesis), set(reference)
    return _published_f(len(left & right) / len(left), len(left & right) / len(right))


def _published_f(precision: float, recall: float) -> float:
    return round(100 * (2 * precision * recall / (precision + recall + 1e-8)), 4)


def _lcs_f1(left: Sequence[str], right: Sequence[str]) -> float:
    if not left or not right:
        return 0.0
    return 200.0 * longest_common_subsequence(left, right) / (len(left) + len(right))


def _overlap_f1(left: Sequence[str], right: Sequence[str]) -> float:
    if not left or not right:
        return 100.0 * (left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 200.0 * common / (len(left) + len(right))


def _comparable(text: str) -> str:
    return normalised(text) or text.strip()
