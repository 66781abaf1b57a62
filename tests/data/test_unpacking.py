from __future__ import annotations

import gzip
import io

import pytest

from everlearn.data import containers, unpacking
from everlearn.data.containers import read_container
from everlearn.data.unpacking import unpacked
from everlearn.errors import DataError

ROWS = b"".join(b'{"input": "%d", "output": "%d"}\n' % (at, at * 7) for at in range(500))


@pytest.mark.parametrize("at", [2, 20, 200, 900, -6, -1])
def test_one_wrong_bit_is_a_damaged_file(at: int) -> None:
    packed = bytearray(gzip.compress(ROWS, mtime=0))
    packed[at] ^= 64
    with pytest.raises(DataError, match=r"^x.gz is a damaged gzip file"):
        unpacked(io.BytesIO(bytes(packed)), "x.gz").read()


def test_a_bomb_is_refused_within_its_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_SURE", 1 << 20)
    bomb = gzip.compress(b" " * 2_000_000) * 50
    stream = io.BytesIO(bomb)
    with pytest.raises(DataError, match=r"x.gz unpacks to more than 1 MiB and more than 200 times its size"):
        unpacked(stream, "x.gz").read()
    assert stream.tell() < len(bomb)
    with pytest.raises(DataError, match="as no text does"):
        read_container(bomb, "x.gz")
    assert unpacked(io.BytesIO(gzip.compress(ROWS)), "x.gz").read() == ROWS


def test_no_more_is_unpacked_than_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"x.gz unpacks to more than 100 bytes: split it into the files of a folder"):
        read_container(gzip.compress(ROWS), "x.gz")
