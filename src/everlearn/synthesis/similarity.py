"""How alike two texts are, in any language: the Jaccard index of their character 4-grams.

Chosen here: words need spaces and tokens need a vocabulary; four characters are about a stem in alphabetic scripts
and about two words in Chinese or Japanese. Texts are compared without regard to case, width, accents' encoding and
runs of white space.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

SHINGLE = 4
_BLOCK = 512


def normalised(text: str) -> str:
    """The text as it is compared: NFKC, case folded, white space as single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> set[str]:
    """The character 4-grams of a normalised text; a shorter text is its own single shingle."""
    plain = normalised(text)
    return {plain[at : at + SHINGLE] for at in range(max(1, len(plain) - SHINGLE + 1))}


def similarity(first: str, second: str) -> float:
    """Shared over all distinct shingles, between 0 and 1."""
    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def greatest_similarity(texts: Sequence[str]) -> float:
    """The similarity of the two texts that are most alike; 0 with fewer than two."""
    return max((similarity(a, b) for at, a in enumerate(texts) for b in texts[:at]), default=0.0)


def first_of_each_kind(texts: Sequence[str], known: Sequence[str], threshold: float) -> list[int | None]:
    """Which earlier text each text repeats.

    Texts are looked at in order; one that repeats nothing becomes known to those after it.

    Args:
        texts: To be judged.
        known: Texts that must not be repeated either.
        threshold: Texts more alike than this are the same; 1 compares normalised texts for equality.

    Returns:
        For each text None when it is new, else the place of the text that it repeats: an index of `texts`, or
        `-1 - index` of `known`.
    """
    if not texts:
        return []
    matrix, sizes = membership([*known, *texts])
    places = {normalised(text): -1 - at for at, text in reversed(list(enumerate(known)))}
    repeats: list[int | None] = []
    for start in range(len(known), len(known) + len(texts), _BLOCK):
        for row, alike in enumerate(_more_alike(matrix, sizes, start, threshold), start):
            at = row - len(known)
            text = normalised(texts[at])
            found = places.get(text)
            if found is None:
                found = next((place for place in _places(alike, len(known)) if _is_new(place, repeats)), None)
            if found is None:
                places[text] = at
            repeats.append(found)
    return repeats


def _places(numbers: Sequence[int], known: int) -> list[int]:
    """Rows of the matrix as places in the result's sense."""
    return [-1 - number if number < known else number - known for number in numbers]


def _is_new(place: int, repeats: Sequence[int | None]) -> bool:
    """Whether that place is known, or an earlier text that repeats nothing."""
    return place < 0 or (place < len(repeats) and repeats[place] is None)


def membership(texts: Sequence[str]) -> tuple[csr_matrix, np.ndarray]:
    """Which text has which shingle, (texts, shingles) of 0 and 1, and the number of shingles of each text."""
    import numpy as np
    from scipy.sparse import csr_matrix

    numbers: dict[str, int] = {}
    rows = [sorted(numbers.setdefault(shingle, len(numbers)) for shingle in shingles(text)) for text in texts]
    sizes = np.array([len(row) for row in rows])
    columns = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    data = np.ones(len(columns), dtype=np.float32)
    return csr_matrix((data, columns, starts), shape=(len(texts), len(numbers))), sizes


def _more_alike(matrix: csr_matrix, sizes: np.ndarray, start: int, threshold: float) -> list[list[int]]:
    """For each text of a block, the other texts that are more like it than the threshold, in order."""
    block = matrix[start : start + _BLOCK]
    shared = (block @ matrix.T).tocoo()
    union = sizes[start + shared.row] + sizes[shared.col] - shared.data
    is_alike = (shared.data / union > threshold) & (start + shared.row != shared.col)
    found: list[list[int]] = [[] for _ in range(block.shape[0])]
    for row, column in sorted(zip(shared.row[is_alike].tolist(), shared.col[is_alike].tolist(), strict=True)):
        found[row].append(column)
    return found
