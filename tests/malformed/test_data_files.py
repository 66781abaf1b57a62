"""Data files of every kind with bytes changed, lost or added: refused or set aside, or what the bytes say."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.data.containers import read_container
from everlearn.data.raw_rows import RawRows
from everlearn.errors import DataError
from tests.data.test_containers import WRITERS
from tests.malformed.answers import in_time

ROWS = [{"input": f"the {word} cat, é{at}", "output": "yes"} for at, word in enumerate(("red", "blue", "green"))]
PIECES = (
    b'"', b'""', b",", b"\t", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"{", b"}", b"[", b"]", b"\\", b"\\u", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"9" * 4400, b"[" * 3000,
    b"null", b"\xe2\x80\xa8", b"\x1a", b"//", b"'", b";", b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b'{"input": 1}',
)  # fmt: skip
FILES = ("rows", "rows.json", "rows.jsonl", "rows.csv", "rows.tsv", "rows.parquet", "rows.jsonl.gz")

edits = st.lists(
    st.tuples(st.sampled_from(["cut", "flip", "add", "drop", "twice", "behead"]), st.integers(0, 400), st.integers(0)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    for how, place, number in changes:
        at = place % (len(data) + 1)
        near = at + 1 + number % 12
        if how == "cut":
            data = data[:at]
        elif how == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :]
        elif how == "add":
            data = data[:at] + PIECES[number % len(PIECES)] + data[at:]
        elif how == "drop":
            data = data[:at] + data[near:]
        elif how == "twice":
            data = data[:near] + data[at:near] + data[near:]
        elif how == "behead":
            data = data[at:]
    return data


def read(data: bytes, file: str) -> RawRows | None:
    """The rows of a file; None where it is refused in one sentence."""
    with in_time(data):
        try:
            raw = read_container(data, file)
            return replace(raw, rows=list(raw.rows))
        except DataError as error:
            sentence = str(error)
    assert sentence.startswith(file)
    assert "\n" not in sentence
    return None


@settings(max_examples=500)
@given(
    kind=st.sampled_from(sorted(WRITERS)), file=st.sampled_from(FILES), inner=edits, outer=edits, packed=st.booleans()
)
def test_changed_bytes_are_read_as_they_stand_or_refused(kind, file, inner, outer, packed):
    data = edited(WRITERS[kind](ROWS), inner)
    raw = read(edited(gzip.compress(data, mtime=0), outer) if packed else data, file)
    for bad in raw.bad if raw else ():
        assert "\n" not in str(bad)
        json.dumps(bad.to_json())
    if raw is None or packed or kind == "parquet":
        return
    assert raw.rows or raw.bad or raw.unit == "line"
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    assert all(_stands_in(value, text) for _, value in raw.rows)


def _stands_in(value: object, text: str) -> bool:
    """Whether every text of a row stands in the file, as it is or as JSON or CSV write it."""
    if isinstance(value, dict):
        return all(_stands_in(inner, text) for pair in value.items() for inner in pair)
    if isinstance(value, list):
        return all(_stands_in(inner, text) for inner in value)
    if not isinstance(value, str):
        return True
    forms = (value, value.replace('"', '""'), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    return any(form in text for form in forms) or "\\u" in text or '"' in text or value.startswith("column ")


@settings(max_examples=150)
@given(changes=edits)
def test_lines_are_read_one_by_one_whatever_stands_in_the_others(changes):
    data = edited(WRITERS["jsonl"](ROWS), changes)
    raw = read(data, "rows.jsonl")
    if raw is None or raw.unit != "line" or (raw.rows and not data.lstrip().startswith(b"{")):
        return
    expected = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            expected[number] = json.loads(line.decode(), object_pairs_hook=list)
        except (ValueError, RecursionError):
            continue
    for number, value in raw.rows:
        assert repr([list(pair) for pair in value.items()] if isinstance(value, dict) else value) == repr(
            [list(pair) for pair in expected[number]] if isinstance(value, dict) else expected[number]
        )
    assert {number for number, _ in raw.rows} | {bad.line for bad in raw.bad} >= set(expected)


@settings(max_examples=150)
@given(changes=edits, delimiter=st.sampled_from(",;\t"))
def test_a_table_without_marks_has_a_row_a_line(changes, delimiter):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([["a", "b"], *(["red cat", "yes"] for _ in range(4))])
    data = edited(text.getvalue().encode(), changes)
    raw = read(data, "rows.tsv")
    if raw is None or b'"' in data or data.lstrip()[:1] in (b"{", b"["):
        return
    lines = data.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    lines = lines.split("\n" if "\n" in lines else "\r")
    for number, row in raw.rows:
        fields = lines[number - 1].split(delimiter)
        assert list(row.values()) == fields[: len(row)]
    assert len(raw.rows) + len(raw.bad) == sum(bool(line.strip()) for line in lines) - 1


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-5],
    "nothing behind the head": lambda data: data[:10],
    "zeros behind": lambda data: data[:40] + bytes(len(data) - 40),
    "one bit": lambda data: data[:60] + bytes([data[60] ^ 16]) + data[61:],
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_no_row_of_a_damaged_gzip_file_is_used(damage: str) -> None:
    rows = [{"input": f"{at * 7919 % 1000} cats", "output": str(at)} for at in range(200)]
    packed = gzip.compress(WRITERS["jsonl"](rows), mtime=0)
    with pytest.raises(DataError, match="damaged gzip"):
        read_container(DAMAGED[damage](packed), "rows.jsonl.gz")


def test_an_object_of_very_many_keys_one_of_them_twice_is_told_at_once() -> None:
    keys = ", ".join(f'"k{at}": 1' for at in range(100_000))
    raw = None
    with in_time("many keys", 20):
        raw = read_container(f'{{"a": 1}}\n{{{keys}, "k99999": 2}}\n'.encode(), "rows.jsonl")
        assert list(raw.rows) == [(1, {"a": 1})]
    assert [str(bad) for bad in raw.bad] == [
        "line 2: JSON that cannot be read (the key 'k99999' stands twice in one object)"
    ]
