"""Text from files on a terminal and in a page: what would act instead of being seen is shown as a sign.

A task's name, a row, a model's answer or the name of a file may hold anything: escape sequences that recolour or clear
a terminal, marks that turn the order of letters round, lone surrogates that no encoding can write.
"""

from __future__ import annotations

import re
import sys
from typing import TextIO

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_TURNING = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def printable(text: str) -> str:
    """The text with control characters shown as symbols and lone surrogates as the replacement character."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\u240d")
    return _UNPRINTABLE.sub(_symbol, text)


def visible(text: object) -> str:
    r"""The text for a terminal or a log: as `printable`, and marks of direction and invisible ones as `\u202e`."""
    return _TURNING.sub(lambda found: ascii(found[0])[1:-1], printable(str(text)))


def tell(text: object = "", *, file: TextIO | None = None) -> None:
    """Prints on the standard output, or on another stream; the one way in which everlearn prints."""
    print(visible(text), file=file or sys.stdout, flush=file is not None)


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"
