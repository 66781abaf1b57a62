"""Unpacks gzip as it is read, and refuses what no text can be: damage, and a few bytes that stand for gigabytes."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import BinaryIO, cast

from everlearn.errors import DataError
from everlearn.ordinary_files import size

GZIP = b"\x1f\x8b"
MOST_TIMES = 200
"""Most bytes that one packed byte may stand for: text packs to a third or a tenth, gzip's limit is 1,032."""
_SURE = 64 << 20  # so many bytes may be unpacked whatever they were packed to: small files repeat themselves
_CHUNK = 1 << 20


def unpacked(packed: BinaryIO, name: str) -> io.BufferedReader:
    """A stream of the unpacked bytes of a gzip file; reading it raises `DataError` at damage and at a bomb.

    Args:
        packed: The file, at its beginning.
        name: Of the file, for messages.
    """
    return io.BufferedReader(_Unpacking(packed, name), _CHUNK)


class _Unpacking(io.RawIOBase):
    def __init__(self, packed: BinaryIO, name: str) -> None:
        self._packed, self._name = packed, name
        self._stream = gzip.GzipFile(fileobj=packed)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = cast("memoryview", buffer)
        try:
            data = self._stream.read(min(len(view), _CHUNK))  # a reader may ask for all at once
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self._name} is a damaged gzip file ({error}): fetch or make it again.") from None
        self._count += len(data)
        if self._count > max(_SURE, MOST_TIMES * self._packed.tell()):
            raise DataError(
                f"{self._name} unpacks to more than {size(_SURE)} and more than {MOST_TIMES} times its size, as no "
                "text does: unpack it and look at what it holds."
            )
        view[: len(data)] = data
        return len(data)
