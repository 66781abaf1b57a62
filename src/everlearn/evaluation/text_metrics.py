"""Scores of one answer against its references, in percent.

Two ROUGE-L forms stand side by side because their numbers are not comparable: the one that SSR's published numbers
rest on (jieba tokens, case-sensitive, punctuation counts) and the word form of the `rouge_score` package that
Super-NaturalInstructions reports (lower case, letters and digits only). With several references the best counts.

Source: arXiv 2403.01244, spec section 10; arXiv 2204.07705 for the word form; arXiv 1606.05250 for token F1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

Metric = Callable[[str, Sequence[str]], float]
"""`metric(prediction, references)` in percent, 0 to 100."""


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence of two token lists (bit-parallel: one machine-word row a token).

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


def published_tokens(text: str) -> list[str]:
    """Tokens as SSR's evaluation sees them: `jieba.cut` in its default mode, white space dropped."""
    return " ".join(_jieba().cut(text)).split()


def word_tokens(text: str) -> list[str]:
    """Tokens as `rouge_score` sees them without stemming: lower-case runs of ASCII letters and digits."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L in SSR's published form; each score rounded to 4 digits. Source: spec section 10."""
    return _best(prediction, references, lambda a, b: round(_f1_of_lcs(_rouge_tokens(a), _rouge_tokens(b)), 4))


def rouge_1(prediction: str, references: Sequence[str]) -> float:
    """Unigram overlap on distinct tokens, as the published code also reports it; rounded to 4 digits."""
    return _best(prediction, references, lambda a, b: round(_rouge_1(_rouge_tokens(a), _rouge_tokens(b)), 4))


def rouge_l_word(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 as the `rouge_score` package computes it without stemming."""
    return _best(prediction, references, lambda a, b: _f1_of_lcs(word_tokens(a), word_tokens(b)))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """100 when the normalised answer equals a reference: lower case, no punctuation, single spaces."""
    return _best(prediction, references, lambda a, b: 100.0 * (normalised(a) == normalised(b)))


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """100 when the answer, white space trimmed and case ignored, is the gold label."""
    return _best(prediction, references, lambda a, b: 100.0 * (a.strip().lower() == b.strip().lower()))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the normalised words, counted with repetition (SQuAD)."""
    return _best(prediction, references, _token_f1)


def normalised(text: str) -> str:
    """Lower case, ASCII punctuation removed, white space squeezed (Super-NaturalInstructions' normalisation)."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


METRICS: dict[str, Metric] = {
    "rouge_l": rouge_l,
    "rouge_l_word": rouge_l_word,
    "exact_match": exact_match,
    "accuracy": accuracy,
    "token_f1": token_f1,
}


def _best(prediction: str, references: Sequence[str], score: Callable[[str, str], float]) -> float:
    assert references, "an answer is scored against at least one reference"
    return max(score(prediction, reference) for reference in references)


def _rouge_tokens(text: str) -> list[str]:
    """The published tokens as the package rouge-chinese counts them.

    It breaks sentences after a question mark or full-width end mark (unless a closing quote follows) and at line
    breaks; a sentence of white space alone counts as one empty token.
    """
    joined = " ".join(_jieba().cut(text))
    if not joined.split():
        return []
    broken = re.sub(r"([。！？?])([^”’])", r"\1\n\2", joined)
    broken = re.sub(r"([。！？?][”’])([^，。！？?])", r"\1\n\2", broken)
    return [token for line in broken.rstrip().split("\n") if line for token in " ".join(line.split()).split(" ")]


def _rouge_1(hypothesis: list[str], reference: list[str]) -> float:
    if not hypothesis or not reference:
        return 0.0
    left, right = set(hypothesis), set(reference)
    precision, recall = len(left & right) / len(left), len(left & right) / len(right)
    return 100.0 * 2 * precision * recall / (precision + recall + 1e-8)


def _f1_of_lcs(hypothesis: list[str], reference: list[str]) -> float:
    if not hypothesis or not reference:
        return 0.0
    return 200.0 * longest_common_subsequence(hypothesis, reference) / (len(hypothesis) + len(reference))


def _token_f1(prediction: str, reference: str) -> float:
    left, right = normalised(prediction).split(), normalised(reference).split()
    if not left or not right:
        return 100.0 * (left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 200.0 * common / (len(left) + len(right))


@cache
def _jieba():  # type: ignore[no-untyped-def]
    import logging

    import jieba

    jieba.setLogLevel(logging.ERROR)
    jieba.initialize()
    return jieba
