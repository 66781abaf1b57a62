"""The hash by which a thing is known again: of all that it holds, or that it was made from."""

from __future__ import annotations

import hashlib
import json


def fingerprint_of(*parts: object) -> str:
    """SHA-256 (first 32 hex digits) of JSON-serialisable parts; keys sorted, so order of keys does not matter."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())
        digest.update(b"\x00")
    return digest.hexdigest()[:32]
