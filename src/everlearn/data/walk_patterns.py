"""Patterns of thinking before a translation: what a walk goes through, step by step.

The published data holds thirteen wordings in six groups; only "context-aware paraphrasing" and "back translation" are
confirmed by the paper's abstract, the other names and the grouping are this project's, and so are the words of the
steps. Walks are written in English. A user's file adds patterns or replaces those of the same id.
Source: R1-T1 (arXiv 2502.19735), its chains (`data/CoT_data.json`; spec section 2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everlearn import recipe_file
from everlearn.errors import DataError

_LIKE = 0.3
"""Least share of a pattern's words."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A way to think before a translation.

    Attributes:
        id: Short and unique.
        name: Of its group.
        steps: In order.
    """

    id: str
    name: str
    steps: tuple[str, ...]


def read_patterns(path: Path | None = None) -> tuple[Pattern, ...]:
    """The patterns that ship with everlearn, with those of a user's file.

    Args:
        path: YAML: a list of objects with `id`, `pattern` and `steps`.

    Raises:
        DataError: the file is missing or of another form; names the entry.
    """
    own = Path(__file__).with_suffix(".yaml")
    known = {pattern.id: pattern for file in (own, path) if file for pattern in _read_file(file)}
    return tuple(known.values())


def likest(walk: str, patterns: Sequence[Pattern]) -> str | None:
    """The name of the pattern whose steps a walk is most like; None: it is like none.

    Likeness is the share of a pattern's words (of at least five letters) that the walk has. Chosen here: no classifier
    of these patterns is published, and words are enough to see a shift.
    """
    words = set(_words(walk))
    shares = [(_share(words, pattern), pattern.name) for pattern in patterns]
    share, name = max(shares, default=(0.0, ""))
    return name if share >= _LIKE else None


def _share(words: set[str], pattern: Pattern) -> float:
    own = set(_words(" ".join(pattern.steps)))
    return len(own & words) / len(own) if own else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{5,}", text.lower())


def _read_file(path: Path) -> list[Pattern]:
    tree = recipe_file.read(path, DataError)
    if not isinstance(tree, list) or not tree:
        raise DataError(f"{path} holds no list of patterns: write objects with id, pattern and steps.")
    return [_read(path, at, entry) for at, entry in enumerate(tree, 1)]


def _read(path: Path, at: int, entry: object) -> Pattern:
    where = f"{path}, pattern {at}"
    if not isinstance(entry, dict) or set(entry) != {"id", "pattern", "steps"}:
        raise DataError(f"{where}: it has not exactly the keys id, pattern and steps: give all three.")
    steps = entry["steps"]
    if not isinstance(steps, list) or not steps or not all(_is_text(s) for s in steps):
        raise DataError(f"{where}: steps is no list of texts: write each step as a text.")
    for key in ("id", "pattern"):
        if not _is_text(entry[key]):
            raise DataError(f"{where}: {key} is no text: write one.")
    return Pattern(entry["id"], entry["pattern"], tuple(steps))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
