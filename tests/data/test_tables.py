"""Quotation marks in tables: no row is swallowed, no cell of several lines is torn."""

from __future__ import annotations

import csv
import io

import pytest

from everlearn.data.tables import read_table
from everlearn.errors import DataError

HEADER = ["text", "label"]


def lines(delimiter: str, rows: list[list[str]], end: str = "\n") -> str:
    """Rows as a tool writes them that never quotes."""
    return "".join(delimiter.join(row) + end for row in [HEADER, *rows])


def written(delimiter: str, rows: list[list[str]], quoting: int = csv.QUOTE_MINIMAL) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows([HEADER, *rows])
    return file.getvalue()


def cells(text: str) -> list[list[str]]:
    raw = read_table(text, "rows")
    assert not raw.bad
    return [list(row.values()) for _, row in raw.rows]


PLAIN = [[f"row {at}", "neg" if at % 2 else "pos"] for at in range(8)]
OPENED = [*PLAIN[:3], ['"Never again, said the porter', "neg"], ['and left"', "pos"], *PLAIN[3:]]
FAR = [*PLAIN[:2], ['"Never', "neg"], *PLAIN[2:6], ['again"', "pos"], *PLAIN[6:]]
WHOLE = [*PLAIN, ['"A whole sentence."', "pos"], ['5" pipe', "neg"]]
UNCLOSED = [*PLAIN, ['"Never closed', "neg"]]
INNER = [*PLAIN, ['"Good" he said', "pos"]]


@pytest.mark.parametrize(
    "rows", [OPENED, FAR, WHOLE, UNCLOSED, INNER], ids=["opened", "far", "whole", "unclosed", "inner"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_of_a_tsv_that_is_not_quoted_are_text(rows: list[list[str]], end: str) -> None:
    text = lines("\t", rows, end)
    assert cells(text) == rows
    assert "quotation marks are taken as part of the text" in read_table(text, "rows").notes[0]


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("rows", [[[text.replace(",", ""), label] for text, label in rows] for rows in (OPENED, FAR)])
def test_a_mark_that_would_merge_rows_of_a_csv_is_text(rows: list[list[str]], delimiter: str) -> None:
    assert cells(lines(delimiter, rows)) == rows
    assert "would make one row of lines" in read_table(lines(delimiter, rows), "rows").notes[0]


MANY_LINES = [["one\ntwo", "pos"], ['she said "no"\n\nand left; so, yes\t!', "neg"], ["plain", "pos"], ["", "neg"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_a_writer_of_tables_quotes_is_read_back(delimiter: str, quoting: int) -> None:
    assert cells(written(delimiter, MANY_LINES, quoting)) == MANY_LINES
    one_line = [[text.replace("\n", " ").replace("\t", " "), label] for text, label in MANY_LINES]
    assert cells(written(delimiter, one_line, quoting)) == one_line


def test_a_csv_whose_cells_could_be_rows_is_read_as_it_is_quoted_and_told() -> None:
    rows = [["first, a\nsecond", "x, y"], *PLAIN, ["a, b, c", "pos"]]
    assert cells(written(",", rows)) == rows
    accident = [*PLAIN[:2], ["a, b", "neg"], ["swallowed", "pos"]]
    text = written(",", accident).replace("row 1,neg\r\n", '"row 1,neg\r\n').replace("swallowed", 'swallowed"')
    with pytest.raises(DataError, match="not valid CSV"):
        read_table(text, "rows")
    text = 'text,label\n"one,neg\ntwo",pos\n"a, b",neg\n'
    raw = read_table(text, "rows")
    assert len(raw.rows) == 2
    assert raw.notes == [
        "1 rows with a quoted cell run over lines that have the fields of a row each, the first in line 2: if these "
        "lines are rows of their own, a quotation mark is missing there."
    ]


def test_rows_of_another_number_of_fields_cannot_be_used_but_empty_ones_lose_nothing() -> None:
    raw = read_table("text\tlabel\na\tpos\t\t\nb\nc\tneg\tx\n\n \nd\tneg\n", "rows")
    assert [row["text"] for _, row in raw.rows] == ["a", "d"]
    assert [str(bad) for bad in raw.bad] == [
        "line 3: 1 fields where the header has 2",
        "line 4: 3 fields where the header has 2",
    ]


def test_columns_without_a_name_are_called_by_their_place() -> None:
    raw = read_table("\n\ttext\t \n1\ta\tx\n", "rows")
    assert raw.rows == [(3, {"column 1": "1", "text": "a", "column 3": "x"})]
    with pytest.raises(DataError, match="names a column twice"):
        read_table("a,,column 2\n1,2,3\n", "rows")


def test_a_header_alone_holds_no_rows_and_a_zero_byte_is_no_text() -> None:
    assert read_table("text,label\n", "rows").rows == []
    (bad,) = read_table("text,label\na\0,x\n", "rows").bad
    assert bad.reason == "a zero byte, which is no text"


def test_a_return_within_a_line_is_part_of_the_text() -> None:
    assert cells("text\tlabel\nwet\rpaint\tpos\n") == [["wet\rpaint", "pos"]]


def test_a_header_that_comes_again_is_no_row() -> None:
    raw = read_table("text,label\na,pos\ntext,label\nb,neg\n", "rows")
    assert [row["text"] for _, row in raw.rows] == ["a", "b"]
    assert [str(bad) for bad in raw.bad] == ["line 3: the header again, as where two files were joined"]
