"""CSV and TSV with a header line.

Whether quotation marks enclose a cell or belong to its text cannot be known from one cell: a writer of CSV encloses
cells and doubles the marks in them, the TSV of GLUE, Common Voice or Tatoeba has no quoting at all. Taken wrongly, a
mark at the start of a cell swallows the rows up to the next one. So both readings are tried:

* as text, if enclosed cells would run over lines that are rows in their own right and no mark is doubled as a writer
  of CSV doubles it;
* in TSV also if enclosing marks do not match, or if every line is a row, unless the cells look as a writer makes them
  (enclosed where they must be);
* as enclosing otherwise.

What was decided is told where the two readings differ.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from dataclasses import dataclass

from everlearn.data.bad_rows import BadRow
from everlearn.data.raw_rows import RawRows
from everlearn.errors import DataError

_HEADER = 1 << 16  # letters within which the first line is looked for
_DOUBLED = re.compile(r'[^",;\s]""|""[^",;\s]')


@dataclass(frozen=True, slots=True)
class _Record:
    """One record: its first and last line, and its fields."""

    first: int
    last: int
    fields: list[str]


def read_table(text: str, file: str) -> RawRows:
    """Reads a table; the delimiter is a tab where the header has one, else the more frequent of , and ;.

    Raises:
        DataError: it has one column only, its header names a column twice, or its quotation marks do not match.
    """
    header_line = next((line for line in re.split("[\r\n]+", text[:_HEADER]) if line.strip()), "")
    delimiter = "\t" if "\t" in header_line else max(",;", key=header_line.count)
    if not header_line.count(delimiter):
        raise DataError(
            f"{file} is none of the kinds that are read (JSON, JSON Lines, CSV, TSV, Parquet, gzip of each): "
            f"its first line is {header_line[:60].strip()!r}. Convert it to one of them."
        )
    records, note = _records(text, delimiter, file)
    rows: list[tuple[int, object]] = []
    raw = RawRows(file, rows, unit="line", notes=[note] if note else [])
    header = [name.strip() or f"column {at}" for at, name in enumerate(records[0].fields, 1)]
    if len(set(header)) < len(header):
        raise DataError(f"{file}: the header names a column twice ({', '.join(header)}): rename one.")
    for record in records[1:]:
        fields = record.fields
        if fields == records[0].fields:
            raw.bad.append(BadRow(file, record.first, "the header again, as where two files were joined", fields))
        elif not _fits(fields, len(header)):
            reason = f"{len(fields)} fields where the header has {len(header)}"
            raw.bad.append(BadRow(file, record.first, reason, fields))
        elif any("\0" in field for field in fields):
            raw.bad.append(BadRow(file, record.first, "a zero byte, which is no text", fields))
        else:
            rows.append((record.first, dict(zip(header, fields, strict=False))))
    return raw


def _records(text: str, delimiter: str, file: str) -> tuple[list[_Record], str]:
    """The records of a table, header included, and how quotation marks were taken where that was not clear."""
    plain = _unquoted(text, delimiter)
    if '"' not in text:
        return plain, ""
    every_line_is_a_row = not _misfits(plain)
    quoted, fault = _quoted(text, delimiter)
    if fault and delimiter == "\t":
        return plain, "quotation marks are taken as part of the text: they do not enclose whole cells."
    if fault:
        raise DataError(
            f"{file}, {fault}: put fields that hold quotes, delimiters or line breaks in double quotes, and double "
            "the quotes inside them."
        )
    over_lines = [record for record in quoted if record.last > record.first]
    encloses = delimiter != "\t" and _DOUBLED.search(text)  # no text of its own has marks like these
    if over_lines and not encloses and _misfits(plain) <= _misfits(quoted):
        first = over_lines[0]
        return plain, (
            f"quotation marks are taken as part of the text: enclosing cells, they would make one row of lines "
            f"{first.first} to {first.last}, each of which has the fields of a row."
        )
    if delimiter == "\t" and every_line_is_a_row:
        if not _looks_enclosed(plain):
            differ = [one.fields for one in plain] != [one.fields for one in quoted]
            return plain, "quotation marks are taken as part of the text, as TSV has no quoting." if differ else ""
        return quoted, "quotation marks around cells are taken off, as a writer of tables puts them there."
    return quoted, _doubt(over_lines, plain)


def _doubt(over_lines: list[_Record], plain: list[_Record]) -> str:
    """A sentence on records over several lines each of which could be a row."""
    fields = {line.first: len(line.fields) for line in plain}
    doubtful = [
        record.first
        for record in over_lines
        if all(fields.get(line) == len(plain[0].fields) for line in range(record.first, record.last + 1))
    ]
    if not doubtful:
        return ""
    return (
        f"{len(doubtful)} rows with a quoted cell run over lines that have the fields of a row each, the first in "
        f"line {doubtful[0]}: if these lines are rows of their own, a quotation mark is missing there."
    )


def _quoted(text: str, delimiter: str) -> tuple[list[_Record], str]:
    """The records where marks enclose cells, and the fault behind the last of them, if there is one."""
    limit = csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than one long document
    records, number = [], 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for fields in reader:
            records.append(_Record(number, reader.line_num, fields))
            number = reader.line_num + 1
    except csv.Error as error:
        return records, f"line {number}: not valid CSV ({error})"
    finally:
        csv.field_size_limit(limit)
    return _without_blank_lines(records), ""


def _unquoted(text: str, delimiter: str) -> list[_Record]:
    lines = text.replace("\r\n", "\n").split("\n") if "\n" in text else text.split("\r")
    return _without_blank_lines([_Record(at, at, line.split(delimiter)) for at, line in enumerate(lines, 1)])


def _without_blank_lines(records: list[_Record]) -> list[_Record]:
    return [record for record in records if record.fields and (len(record.fields) > 1 or record.fields[0].strip())]


def _fits(fields: list[str], width: int) -> bool:
    """Whether a record has a row's fields; further ones that are empty are delimiters too many, and lose nothing."""
    return len(fields) >= width and not any(fields[width:])


def _misfits(records: list[_Record]) -> int:
    width = len(records[0].fields)
    return sum(not _fits(record.fields, width) for record in records)


def _looks_enclosed(plain: list[_Record]) -> bool:
    """Whether the marks of a table whose every line is a row are a writer's: around all text, or where needed."""
    cells = [field for record in plain for field in record.fields if '"' in field and field != '""']
    if not all(re.fullmatch(r'"(?:[^"]|"")*"', cell) for cell in cells):
        return False
    header = plain[0].fields
    return all(cell.startswith('"') for cell in header) or all('""' in cell[1:-1] for cell in cells)
