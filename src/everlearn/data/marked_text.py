"""Marks around what comes from the data, so that it is known again in what a chat template makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import control_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PRIVATE = [chr(code) for code in range(0xE000, 0xF8FF)]


class Marks:
    """A pair of characters that occur neither in some texts nor in the template.

    Args:
        texts: All that comes from the data.
        source: The template.
        tokenizer: Says what the control tokens are.
    """

    def __init__(self, texts: Iterable[str], source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        present = set(source).union(*texts)
        self._open, self._close = [letter for letter in _PRIVATE if letter not in present][:2]
        self._pattern = control_pattern(tokenizer)

    def around(self, text: str) -> str:
        """A text with marks.

        White space at its ends stays outside, for templates that strip. Control tokens are broken by a pair of marks,
        so that no template acts on them (many cut an answer at `</think>`).
        """
        core = text.strip()
        if not core:
            return text
        begin = text.index(core)
        broken = self._pattern.sub(lambda found: f"{found[0][:1]}{self._close}{self._open}{found[0][1:]}", core)
        return f"{text[:begin]}{self._open}{broken}{self._close}{text[begin + len(core) :]}"

    def pieces(self, rendered: str) -> list[tuple[str, bool]] | None:
        """A rendering in pieces without the marks, each with whether it is data; None where a mark lacks its other."""
        pieces, is_data = [], False
        for part in re.split(f"([{self._open}{self._close}])", rendered):
            if part not in (self._open, self._close):
                pieces.append((part, is_data))
            elif is_data == (part == self._open):
                return None
            else:
                is_data = not is_data
        return None if is_data else pieces
