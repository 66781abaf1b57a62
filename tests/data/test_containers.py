from __future__ import annotations

import gzip
import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everlearn.data.containers import read_container
from everlearn.errors import DataError

ROWS = [{"input": 'a, "b"\nc', "output": "d"}, {"input": "é\u2028x", "output": "1"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def values(data: bytes, file: str = "rows.jsonl") -> list[object]:
    return [value for _, value in read_container(data, file).rows]


def csv_bytes(rows: list[dict[str, str]], delimiter: str = ",") -> bytes:
    import csv

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_bytes(rows: list[dict[str, object]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


WRITERS = {
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "one-line json": lambda rows: json.dumps(rows).encode(),
    "json with data": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "pretty json with data": lambda rows: json.dumps({"version": 1, "data": rows}, indent=2).encode(),
    "csv": csv_bytes,
    "semicolons": lambda rows: csv_bytes(rows, ";"),
    "tsv": lambda rows: csv_bytes(rows, "\t"),
    "parquet": parquet_bytes,
}


NAMES = ("rows", "rows.txt", "rows.parquet", "rows.json", "rows.jsonl.gz", "rows.csv")
CASES = [
    (kind, name)
    for kind in WRITERS
    for name in NAMES
    if not (kind in ("csv", "semicolons", "tsv") and "json" in name) and not ("json" in kind and "csv" in name)
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_kind_is_told_by_its_content(kind, name):
    data = WRITERS[kind](ROWS)
    assert values(data, name) == ROWS
    assert values(gzip.compress(data), name) == ROWS
    if kind != "parquet":
        assert values(b"\xef\xbb\xbf" + data, name) == ROWS


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"input": texts, "output": texts}), min_size=2, max_size=5),
    kind=st.sampled_from(sorted(WRITERS)),
)
def test_what_is_written_is_read_back(rows, kind):
    assert values(WRITERS[kind](rows), "rows") == rows


@settings(max_examples=300, deadline=None)
@given(data=st.binary(), head=st.sampled_from([b"", b"{", b"[", b"a,b\n", b"\x1f\x8b", b"\xef\xbb\xbf"]))
@example(data=b"[" * 100_000, head=b"")
@example(data=b'{"a":' * 100_000, head=b"")
@example(data=b'{"a": ' + b"9" * 5000 + b"}", head=b"")
@example(data=b"PAR1 not really", head=b"")
def test_arbitrary_bytes_raise_nothing_but_data_errors(data, head):
    for name in ("rows", "rows.json", "rows.jsonl", "rows.tsv"):
        message = name
        try:
            read_container(head + data, name)
        except DataError as error:
            message = str(error)
        assert message.startswith(name)


def test_ssr_files_are_json_lines_whatever_their_suffix():
    raw = read_container(JSONL, "qa.train.json")
    assert list(raw.rows) == list(enumerate(ROWS, 1))
    assert raw.unit == "line"


def test_one_row_of_json_lines_is_a_row():
    assert values(b'{"input": "a", "output": "b"}\n') == [{"input": "a", "output": "b"}]


def test_blank_lines_are_skipped_and_still_counted():
    raw = read_container(b'{"a": 1}\r\n\r\n{"a": 2}', "rows.jsonl")
    assert list(raw.rows) == [(1, {"a": 1}), (3, {"a": 2})]


def test_a_faulty_line_is_one_bad_row():
    raw = read_container(b'{"a": 1}\n{"a": \n{"a": 3}\nnonsense\n', "rows.jsonl")
    assert [number for number, _ in raw.rows] == [1, 3]
    assert [str(row) for row in raw.bad] == [
        "line 2: not valid JSON (Expecting value, column 7)",
        "line 4: not valid JSON (Expecting value, column 1)",
    ]
    assert raw.bad[1].row == "nonsense"


def test_a_faulty_first_line_does_not_hide_the_others():
    raw = read_container(b'{"a": \n{"a": 2}\n', "rows.jsonl")
    assert list(raw.rows) == [(2, {"a": 2})]
    assert [row.line for row in raw.bad] == [1]
    raw = read_container(b'nonsense\n{"a": 2}\n', "rows.jsonl")
    assert len(list(raw.rows)) == 1
    assert [row.line for row in raw.bad] == [1]


def test_a_line_that_is_not_utf8_is_one_bad_row_with_its_offset():
    data = b'{"a": "x"}\n{"a": "caf\xe9"}\n{"a": "y"}\n'
    raw = read_container(data, "rows.jsonl")
    assert [number for number, _ in raw.rows] == [1, 3]
    assert f"byte 0xE9 is not UTF-8 text (Latin-1 or Windows-1252?), offset {data.index(0xE9)}" in raw.bad[0].reason


@pytest.mark.parametrize(
    ("data", "file", "sentence"),
    [
        (b"", "a.jsonl", "a.jsonl is empty: give a file"),
        (b" \n\t", "a.csv", "a.csv is empty: give a file"),
        # The values name the tests, and parallel workers must agree on the names: no time of packing.
        (gzip.compress(b"", mtime=0), "a.jsonl.gz", "a.jsonl.gz is empty"),
        (gzip.compress(JSONL, mtime=0)[:-12], "a.jsonl.gz", "a.jsonl.gz is a damaged gzip file"),
        (b"PAR1" + bytes(30), "a.parquet", "a.parquet is a damaged Parquet file"),
        (b"PK\x03\x04rest", "a.xlsx", "a.xlsx is a zip archive or a spreadsheet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.jsonl", "a.jsonl is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "a.jsonl", "a.jsonl is a web page: fetch"),
        ("[1]".encode("utf-16"), "a.json", "UTF-16 text, not UTF-8: convert it with `iconv -f UTF-16"),
        ("[1]".encode("utf-16-le"), "a.json", "holds zero bytes, so it is binary or UTF-16"),
        ('[{"a": "café"}]'.encode("latin-1"), "a.json", r"line 1: byte 0xE9 is not UTF-8 .* at offset 11.*iconv"),
        ("input,output\na,b\ncafé,x\n".encode("latin-1"), "a.csv", r"line 3: byte 0xE9 .* at offset 20"),
        (b'[{"a": 1},\n {"a": }]', "a.json", "not valid JSON: Expecting value at line 2, column 8"),
        (b'{\n "data": [}', "a.json", "not valid JSON: Expecting value at line 2, column 11"),
        (b"just a sentence\nand another\n", "notes.txt", "none of the kinds that are read"),
        (b"a,a\n1,2\n", "a.csv", "names a column twice"),
        (b'a,b\n1,2\n"x,2\n', "a.csv", r"line 3: not valid CSV \(unexpected end of data\)"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_clear_sentence(data, file, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_container(data, file)
    assert str(caught.value).count("\n") == 0


def test_a_table_row_with_too_many_fields_is_bad_and_quoted_line_breaks_are_counted():
    raw = read_container(b'a,b\n"x\ny",1\n1,2,3\n4,5\n', "rows.csv")
    assert raw.rows == [(2, {"a": "x\ny", "b": "1"}), (5, {"a": "4", "b": "5"})]
    assert [str(row) for row in raw.bad] == ["line 4: 3 fields where the header has 2"]


def test_a_field_may_be_longer_than_the_csv_module_allows_by_default():
    import csv

    before = csv.field_size_limit()
    assert values(b"a,b\n" + b"x" * 200_000 + b",1\n", "rows.csv") == [{"a": "x" * 200_000, "b": "1"}]
    assert csv.field_size_limit() == before


def test_a_superni_task_file_keeps_its_document():
    document = {"Definition": ["Do."], "Instances": [{"input": "a", "output": ["b"]}]}
    for indent in (None, 2):
        raw = read_container(json.dumps(document, indent=indent).encode(), "task.json")
        assert raw.document == document
        assert raw.rows == [(1, {"input": "a", "output": ["b"]})]
