"""From the bytes of a data file to numbered rows: gzip, JSON, JSON Lines, CSV, TSV, Parquet and CoNLL.

The kind of a file is told by its content (magic bytes, first character that is no space); the suffix only decides
where the content leaves it open, and for CoNLL. SuperNI files in SSR's repository are JSON Lines although they end in
`.json`.
Text is UTF-8, with or without a byte order mark; anything else is refused with the place of the first wrong byte.
A line of JSON Lines that cannot be read is one bad row; a JSON document, a CSV or a Parquet file that cannot be
read is refused whole, because what follows the fault has no sure meaning. No more than `MOST_BYTES` are unpacked.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import PurePath

from everlearn.checking import first_double
from everlearn.data.account import listed
from everlearn.data.bad_rows import BadRow
from everlearn.data.conll import SUFFIXES, read_conll
from everlearn.data.parquet import read_parquet
from everlearn.data.raw_rows import RawRows
from everlearn.data.tables import read_table
from everlearn.data.unpacking import GZIP, unpacked
from everlearn.errors import DataError
from everlearn.ordinary_files import MOST_BYTES, size

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", *SUFFIXES)
_PARQUET, _UTF8_MARK = b"PAR1", b"\xef\xbb\xbf"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or export it as CSV",
    b"BZh": "compressed with bzip2: unpack it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz: unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it, or compress it with gzip",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file: fetch it with `git lfs pull`",
    b"<!DOCTYPE html": "a web page: fetch the file itself",
    b"<!doctype html": "a web page: fetch the file itself",
    b"<html": "a web page: fetch the file itself",
    b"\xff\xfe\x00\x00": "UTF-32 text, not UTF-8: convert it with `iconv -f UTF-32 -t UTF-8`",
    b"\x00\x00\xfe\xff": "UTF-32 text, not UTF-8: convert it with `iconv -f UTF-32 -t UTF-8`",
    b"\xff\xfe": "UTF-16 text, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16 text, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
}


def data_suffix(name: str) -> str:
    """The suffix that says the kind, without `.gz`: `.jsonl` for `a.jsonl.gz`."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix == ".gz" else path.suffix


def read_container(data: bytes, file: str) -> RawRows:
    """Reads the rows of one file.

    Args:
        data: The whole file.
        file: Its name, for messages and for the suffix.

    Raises:
        DataError: empty, damaged, not UTF-8, not of a known kind, or a document that is not valid.
    """
    if data.startswith(GZIP):
        data = unpacked(io.BytesIO(data), file).read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise DataError(f"{file} unpacks to more than {size(MOST_BYTES)}: split it into the files of a folder.")
    if data.startswith(_PARQUET):
        return read_parquet(data, file)
    for magic, what in _FOREIGN.items():
        if data.startswith(magic):
            raise DataError(f"{file} is {what}.")
    data = data.removeprefix(_UTF8_MARK)
    if b"\x00" in data[:4096]:  # further on it is one bad row
        raise DataError(
            f"{file} holds zero bytes, so it is binary or UTF-16 text: give UTF-8 text (`iconv -t UTF-8`)."
        )
    start = data.lstrip()[:1]
    if not start:
        raise DataError(f"{file} is empty: give a file with at least one row, or take it out of the recipe.")
    suffix = data_suffix(file)
    if suffix in SUFFIXES:
        return read_conll(_text(data, file), file)
    if start in (b"{", b"[") and suffix not in (".csv", ".tsv"):
        return _json(data, file)
    return _lines(data, file) if suffix in (".jsonl", ".ndjson", ".json") else read_table(_text(data, file), file)


def _text(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file}, line {line}: {_wrong_byte(data, error.start)} at offset {error.start}. Save the file as UTF-8 "
            "(for Latin-1 text: `iconv -f ISO-8859-1 -t UTF-8`)."
        ) from None


def _wrong_byte(data: bytes, at: int) -> str:
    return f"byte 0x{data[at]:02X} is not UTF-8 text (Latin-1 or Windows-1252?)"


def _without_double_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; of two values under one key, JSON readers would silently keep the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        double = first_double(key for key, _ in pairs)
        raise ValueError(f"the key {double!r} stands twice in one object")
    return value


_decode = json.JSONDecoder(object_pairs_hook=_without_double_keys).decode


def document(text: str, file: str) -> object:
    """What one JSON text holds.

    Raises:
        DataError: names the file and the place.
    """
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}: mend it there."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON that can be read ({error}): mend it.") from None


def _json(data: bytes, file: str) -> RawRows:
    """A file that begins with a brace or bracket: one document, or JSON Lines."""
    first, _, rest = data.lstrip().partition(b"\n")
    is_one_line = not rest.strip()
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        are_lines = first.startswith(b"{") and (is_one_line or rest.lstrip().startswith(b"{"))
    else:
        are_lines = not is_one_line
    if are_lines:
        return _lines(data, file)
    value = document(_text(data, file), file)
    if isinstance(value, list):
        return RawRows(file, list(enumerate(value, 1)))
    if isinstance(value, dict):
        for key in ("Instances", "data"):
            if isinstance(value.get(key), list):
                others = [] if key == "Instances" else [name for name in value if name != key]
                notes = [f"beside its rows under {key!r}, {listed(others)} is not read."] if others else []
                return RawRows(file, list(enumerate(value[key], 1)), document=value, notes=notes)
    return RawRows(file, [(1, value)])


def _lines(data: bytes, file: str) -> RawRows:
    """JSON Lines; blank lines are skipped, each faulty line is one bad row."""
    bad: list[BadRow] = []
    return RawRows(file, _decoded(data, file, bad), bad, unit="line")


def _decoded(data: bytes, file: str, bad: list[BadRow]) -> Iterator[tuple[int, object]]:
    """The rows of lines; the bad ones are added to those given."""
    lines: list[str | bytes]
    try:
        lines = [*data.decode("utf-8").split("\n")]
    except UnicodeDecodeError:
        lines = [*data.split(b"\n")]
    offset = 0
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8") if isinstance(line, bytes) else line
            if text and not text.isspace():
                yield number, _decode(text)
        except UnicodeDecodeError as error:
            assert isinstance(line, bytes), "only bytes are decoded"
            reason = f"{_wrong_byte(line, error.start)}, offset {offset + error.start} of the file"
            bad.append(BadRow(file, number, reason, line.decode("utf-8", "backslashreplace")))
        except json.JSONDecodeError as error:
            bad.append(BadRow(file, number, f"not valid JSON ({error.msg}, column {error.colno})", line))
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(file, number, f"JSON that cannot be read ({error})", line))
        offset += len(line) + 1
