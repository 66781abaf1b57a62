"""The hash by which a thing is known again: of all that it holds, or that it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice

_JSON = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))
_AT_ONCE = 256
"""Items of an iterator that are written in one go: a row by itself takes twice as long."""


def fingerprint_of(*parts: object) -> str:
    """SHA-256 (first 32 hex digits) of JSON-serialisable parts; keys sorted, so order of keys does not matter.

    An iterator has the hash of the list of what it gives, which is never held as a whole.
    """
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(piece)
        digest.update(b"\x00")
    return digest.hexdigest()[:32]


def _pieces(part: object) -> Iterator[bytes]:
    """The JSON of a part."""
    if not isinstance(part, Iterator):
        yield _JSON.encode(part).encode()
        return
    yield b"["
    separator = b""
    while items := list(islice(part, _AT_ONCE)):
        is_nested = any(isinstance(item, Iterator) for item in items)
        for item in items if is_nested else [items]:
            yield separator
            yield from _pieces(item) if is_nested else (_JSON.encode(item)[1:-1].encode(),)
            separator = b","
    yield b"]"
