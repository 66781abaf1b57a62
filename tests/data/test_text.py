"""Reading raw text: every kind gives the same documents, in flat memory, and faults are named with their place."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from everlearn.data import text as text_module
from everlearn.data.text import LONGEST, TextSource
from everlearn.errors import DataError

_PACKED = gzip.compress(b"".join(b"The cat %d was seen by %d men.\n\n" % (n, n * 7 % 90) for n in range(600)), mtime=0)
DAMAGED = _PACKED[:200] + bytes([_PACKED[200] ^ 64]) + _PACKED[201:]
DOCUMENTS = ["one line", "two\nlines", "Ünïcode – 漢字"]


def write_all_kinds(folder: Path) -> dict[str, TextSource]:
    import datasets
    import pyarrow
    import pyarrow.parquet

    plain = "\n\n".join(DOCUMENTS) + "\n"
    rows = "".join(json.dumps({"body": text, "n": 1}) + "\n" for text in DOCUMENTS)
    (folder / "plain.txt").write_text(plain, encoding="utf-8")
    (folder / "windows.txt").write_bytes(b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode())
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    (folder / "plain.txt.gz").write_bytes(gzip.compress(plain.encode()))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    pyarrow.parquet.write_table(pyarrow.table({"body": DOCUMENTS}), folder / "table.parquet")
    datasets.Dataset.from_dict({"body": DOCUMENTS}).save_to_disk(folder / "saved")
    (folder / "many").mkdir()
    (folder / "many" / "a.txt").write_text(DOCUMENTS[0])
    (folder / "many" / "b.txt").write_text("\n\n\n".join(DOCUMENTS[1:]), encoding="utf-8")
    (folder / "many" / "notes.pdf").write_text("not text")
    names = [
        "plain.txt",
        "windows.txt",
        "rows.jsonl",
        "plain.txt.gz",
        "rows.jsonl.gz",
        "table.parquet",
        "saved",
        "many",
    ]
    return {name: TextSource(str(folder / name), "body") for name in names}


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    for name, source in write_all_kinds(tmp_path).items():
        assert list(source.documents()) == DOCUMENTS, name


def test_the_fingerprint_follows_the_content_not_the_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("text")
    two.write_text("text")
    assert TextSource(str(one)).fingerprint() == TextSource(str(two)).fingerprint()
    two.write_text("other")
    assert TextSource(str(one)).fingerprint() != TextSource(str(two)).fingerprint()


def test_long_documents_are_cut_without_losing_a_word(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(60_000)]
    (tmp_path / "long.txt").write_text(" ".join(words))
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": " ".join(words)}))
    for name in ("long.txt", "long.jsonl"):
        pieces = list(TextSource(str(tmp_path / name)).documents())
        assert len(pieces) > 2
        assert max(map(len, pieces)) <= LONGEST
        assert " ".join(pieces).split() == words


def test_a_blank_line_across_two_chunks_still_ends_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("äa\n \nbb\n\n\ncc\ndd", encoding="utf-8")
    for size in range(1, 9):
        monkeypatch.setattr("everlearn.data.text._CHUNK", size)
        assert list(TextSource(str(path)).documents()) == ["äa", "bb", "cc\ndd"]


def test_a_lone_surrogate_becomes_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "a \\ud800 b"}\n')
    assert list(TextSource(str(tmp_path / "odd.jsonl")).documents()) == ["a \N{REPLACEMENT CHARACTER} b"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl, line 2: not valid JSON"),
        ("bad.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: there is no 'text'; did you mean 'txt'?"),
        ("bad.jsonl", b'{"text": 3}\n', "line 1: 'text' holds int, not text"),
        ("bad.jsonl", b'["text"]\n', "line 1: an object with the key 'text'"),
        ("bad.txt", b"abc \xff def", "not UTF-8 text (byte 0xFF"),
        ("bad.txt.gz", b"\x1f\x8b\x08\x00broken", "damaged gzip file"),
        ("bad.jsonl", b'{"text": ' + b"[" * 100_000, "line 1: not valid JSON (nested too deeply)"),
        ("bit.txt.gz", DAMAGED, "damaged gzip file"),
        ("bad.parquet", b"PAR1 broken", "damaged Parquet file"),
    ],
)
def test_a_faulty_file_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(TextSource(str(tmp_path / name)).documents())
    assert words in str(caught.value)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "spring.txt").write_text("text")
    with pytest.raises(DataError, match=r"did you mean .*spring\.txt"):
        TextSource(str(tmp_path / "sprung.txt")).fingerprint()


def test_what_is_no_regular_file_and_a_line_without_an_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for source in (str(tmp_path / "pipe.jsonl"), "/dev/zero"):
        for read in (lambda text: list(text.documents()), TextSource.fingerprint):
            with pytest.raises(DataError, match="not a regular file"):
                read(TextSource(source))
    with pytest.raises(DataError, match="longer than the system allows"):
        TextSource("n" * 300).fingerprint()
    monkeypatch.setattr(text_module, "_LONGEST_LINE", 100)
    (tmp_path / "long.jsonl").write_text('{"text": "' + "a" * 100)
    with pytest.raises(DataError, match="line 1: longer than 100 bytes"):
        list(TextSource(str(tmp_path / "long.jsonl")).documents())
