"""The hash by which a thing is known again: of all that it holds, or that it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator


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
        yield json.dumps(part, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        return
    yield b"["
    for at, item in enumerate(part):
        if at:
            yield b","
        yield from _pieces(item)
    yield b"]"
