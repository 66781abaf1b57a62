"""The errors that a user of everlearn sees.

Every mistake that a user can mend (a missing file, a bad row, an unknown key) is raised as a `UserError`
whose text is one clear sentence: what is wrong, where (file, row or key), and what to do. The command line
prints it without a traceback and exits with code 2. Anything else that escapes is a bug and shows as one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST_WORD = 400
_LONGEST_SENTENCE = 2000


class EverlearnError(Exception):
    """Base class of all errors raised on purpose by everlearn."""


class UserError(EverlearnError):
    """Something the user asked for cannot be done; the message says what to change."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


class DataError(UserError):
    """A data file or a row in it cannot be used; the message names file and row."""


class RecipeError(UserError):
    """A recipe (or a command-line flag, which is the same thing) is wrong; the message names the key."""


class ModelError(UserError):
    """A model folder or name cannot be used as asked."""


class RunError(UserError):
    """A run folder cannot be used as asked (foreign recipe, corrupt artifact, full disk)."""


class MissingExtraError(UserError):
    """An optional dependency is asked for but not installed; the message says what to install."""


def shortened(message: str) -> str:
    """A sentence that can be read whatever was put into it: long words, and long sentences, lose their middle."""
    words = [word if len(word) <= _LONGEST_WORD else _cut(word, _LONGEST_WORD // 2) for word in message.split(" ")]
    text = " ".join(words)
    return text if len(text) <= _LONGEST_SENTENCE else _cut(text, _LONGEST_SENTENCE // 2)


def _cut(text: str, kept: int) -> str:
    return f"{text[:kept]}...({len(text) - 2 * kept:,} letters)...{text[-kept:]}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when nothing is near."""
    matches = difflib.get_close_matches(word[:_LONGEST_WORD], list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """One sentence that refuses `word`, names the nearest known one and lists them all."""
    names = sorted(known)
    guess = nearest(word, names)
    hint = f"did you mean {guess!r}? Known" if guess else "known"
    return f"unknown {kind} {word!r}: {hint} are {', '.join(names)}."
