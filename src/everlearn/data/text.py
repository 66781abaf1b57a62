"""Raw text as a stream of documents: plain text, JSON Lines, Parquet, gzip, saved datasets and the Hugging Face hub.

Nothing is read whole, so memory does not grow with the size of the data. In plain text a blank line ends a document;
a document longer than `LONGEST` characters is cut at a line's end or a space. A source has a fingerprint of its
content, so that the same text under another name is not tokenised again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from everlearn.data.containers import data_suffix
from everlearn.data.source_names import (
    files_in,
    hub_parts,
    is_saved_dataset,
    looks_like_a_path,
    missing,
    unreachable,
)
from everlearn.data.sources import hub_dataset, saved_dataset
from everlearn.data.unpacking import GZIP, unpacked
from everlearn.errors import DataError, nearest
from everlearn.fingerprints import fingerprint_of
from everlearn.ordinary_files import is_folder, opened, size, stat_of

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

LONGEST = 1 << 16
"""Most characters of one document."""
_CHUNK = 1 << 20
_LONGEST_LINE = 256 << 20  # chosen here: a line of JSON is held in memory, its document as several times that
_PARQUET = b"PAR1"
_SUFFIXES = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".json", ".parquet")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_EMPTY: tuple[object, ...] = (None, "", [], {})
_MOST_NAMES = 100  # of keys that are not read; a file may have another one in every row
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class TextAccount:
    """What of a source does not become text as it stands; plain text is read whole.

    Attributes:
        rows: Rows of structured files.
        blank: Of them, those that hold no text and are passed over.
        mended: Of them, those that held half a surrogate pair, which is replaced.
        unread: Other key or column to the number of rows that have it.
    """

    rows: int = 0
    blank: int = 0
    mended: int = 0
    unread: dict[str, int] = field(default_factory=dict)

    def pass_over(self, names: Iterable[str], rows: int = 1) -> None:
        """Counts keys that are not read."""
        for name in names:
            if name in self.unread or len(self.unread) < _MOST_NAMES:
                self.unread[name] = self.unread.get(name, 0) + rows


@dataclass(frozen=True, slots=True)
class TextSource:
    """Where the text of a version comes from.

    Attributes:
        name: As the recipe gives it: a path, or `name[:config][@split]`.
        column: Key or column of the text in structured files.
    """

    name: str
    column: str = "text"

    def documents(self, account: TextAccount | None = None) -> Iterator[str]:
        """The documents in order, stripped, none empty.

        Args:
            account: Counts what does not become text as it stands.

        Raises:
            DataError: nothing is there, it cannot be read, or a row has no text (names file and row).
        """
        for document in self._raw(account or TextAccount()):
            text = document.strip()
            while len(text) > LONGEST:
                cut = _cut(text)
                yield text[:cut].rstrip()
                text = text[cut:].lstrip()
            if text:
                yield text

    def fingerprint(self) -> str:
        """Hash of the content: of the bytes of files, of a saved dataset's own fingerprint, of a hub commit."""
        path = Path(self.name)
        if not _is_there(path):
            return fingerprint_of("hub", self.name, self.column, _hub_commit(self.name))
        if is_saved_dataset(path):
            return fingerprint_of("saved", self.column, _saved(path)._fingerprint)
        digests = []
        for file in self._files():
            with opened(file) as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        return fingerprint_of("files", self.column, digests)

    def _raw(self, account: TextAccount) -> Iterator[str]:
        path = Path(self.name)
        if is_saved_dataset(path):
            yield from self._of_dataset(_saved(path), account)
        elif _is_there(path):
            for file in self._files():
                yield from self._of_file(file, account)
        elif looks_like_a_path(self.name, _SUFFIXES):
            raise missing(path)
        else:
            yield from self._of_dataset(hub_dataset(self.name, streaming=True), account)

    def _files(self) -> list[Path]:
        path = Path(self.name)
        return files_in(path, _SUFFIXES, "text") if is_folder(path) else [path]

    def _of_file(self, file: Path, account: TextAccount) -> Iterator[str]:
        try:
            with opened(file) as stream:
                magic = stream.read(4)
                stream.seek(0)
                if magic == _PARQUET:
                    yield from self._of_parquet(file, account)
                    return
                data = unpacked(stream, str(file)) if magic.startswith(GZIP) else stream
                if data_suffix(file.name) in (".jsonl", ".ndjson", ".json"):
                    yield from self._of_json_lines(file, data, account)
                else:
                    yield from _paragraphs(file, data)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{file} cannot be read ({reason}): give a whole file that you may read.") from None

    def _of_json_lines(self, file: Path, data: IO[bytes], account: TextAccount) -> Iterator[str]:
        lines = iter(lambda: data.readline(_LONGEST_LINE + 1), b"")
        for number, line in enumerate(lines, 1):
            where = f"{file}, line {number}"
            if len(line) > _LONGEST_LINE:
                raise DataError(f"{where}: longer than {size(_LONGEST_LINE)}: split it into several rows.")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                raise DataError(f"{where}: not valid JSON ({reason}): mend or delete the line.") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: an object with the key {self.column!r} is expected.")
            yield self._text(row.get(self.column), where, account, row)
            account.pass_over(key for key, value in row.items() if key != self.column and value not in _EMPTY)

    def _of_parquet(self, file: Path, account: TextAccount) -> Iterator[str]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                names = table.schema_arrow.names
                if self.column not in names:
                    raise DataError(_no_column(str(file), self.column, names))
                account.pass_over((name for name in names if name != self.column), table.metadata.num_rows)
                number = 0
                for batch in table.iter_batches(batch_size=1024, columns=[self.column]):
                    for text in batch.column(0).to_pylist():
                        number += 1
                        yield self._text(text, f"{file}, row {number}", account)
        except pyarrow.ArrowException as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{file} is a damaged Parquet file ({reason}): fetch or make it again.") from None

    def _of_dataset(self, dataset: Dataset | IterableDataset, account: TextAccount) -> Iterator[str]:
        number = 0
        for batch in dataset.iter(batch_size=1024):
            if self.column not in batch:
                raise DataError(_no_column(self.name, self.column, list(batch)))
            account.pass_over((name for name in batch if name != self.column), len(batch[self.column]))
            for text in batch[self.column]:
                number += 1
                yield self._text(text, f"{self.name}, row {number}", account)

    def _text(self, value: object, where: str, account: TextAccount, row: Mapping[str, object] | None = None) -> str:
        account.rows += 1
        if isinstance(value, str):
            account.blank += not value or value.isspace()
            if not value.isascii():
                value, mended = _LONE_SURROGATE.subn("\N{REPLACEMENT CHARACTER}", value)
                account.mended += bool(mended)
            return value
        if value is None and row is not None and self.column not in row:
            raise DataError(_no_column(where, self.column, list(row)))
        raise DataError(f"{where}: {self.column!r} holds {type(value).__name__}, not text: mend or delete the row.")


def _is_there(path: Path) -> bool:
    """Whether something stands at a path, be it a broken link."""
    return stat_of(path) is not None or path.is_symlink()


def _paragraphs(file: Path, data: IO[bytes]) -> Iterator[str]:
    import codecs

    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    rest, offset = "", 0
    while True:
        chunk = data.read(_CHUNK)
        try:
            text = decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file} is not UTF-8 text (byte 0x{error.object[error.start]:02X} near offset {offset}): convert it "
                "with `iconv -t UTF-8`."
            ) from None
        offset += len(chunk)
        rest += text.replace("\r\n", "\n")
        if not chunk:
            yield rest
            return
        *whole, rest = _BLANK_LINE.split(rest)
        yield from whole
        while len(rest) > LONGEST:
            cut = _cut(rest)
            yield rest[:cut]
            rest = rest[cut:]


def _cut(text: str) -> int:
    """Where a text that is too long is cut: after the last line, else word, that fits."""
    for mark in ("\n", " "):
        at = text.rfind(mark, LONGEST // 2, LONGEST)
        if at > 0:
            return at + 1
    return LONGEST


def _saved(path: Path) -> Dataset:
    from datasets import DatasetDict

    saved = saved_dataset(path)
    if isinstance(saved, DatasetDict):
        raise DataError(f"{path} has splits: name the folder of one of them ({', '.join(saved)}).")
    return saved


def _hub_commit(source: str) -> str:
    from huggingface_hub import HfApi

    if looks_like_a_path(source, _SUFFIXES):
        raise missing(Path(source))
    try:
        return str(HfApi().dataset_info(hub_parts(source)[0]).sha)
    except Exception as error:  # as above
        raise unreachable(source, error) from None


def _no_column(where: str, column: str, names: list[str]) -> str:
    guess = nearest(column, names)
    hint = f"did you mean {guess!r}?" if guess else f"it has {', '.join(names)}."
    return f"{where}: there is no {column!r}; {hint} Set 'column' to the one that holds the text."
