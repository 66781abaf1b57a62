"""Parallel lines in a file for each language (`flores.en`, `flores.zh`, ...), as R1-T1's evaluation reads FLORES.

A folder gives every direction that is evaluated (`everlearn.data.translation.directions`), line by line, so that a
limit of rows takes all directions; `FOLDER@de-en` gives one. Source: arXiv 2502.19735, `evaluation/evaluate.py` (spec
section 7).
"""

from __future__ import annotations

from pathlib import Path

from everlearn.data.raw_rows import RawRows
from everlearn.data.translation import LANGUAGES, directions
from everlearn.errors import DataError, unknown
from everlearn.ordinary_files import read_bytes

_PREFIX = "flores."


def flores_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by their language's code; none where it has no two such."""
    found = {path.name.removeprefix(_PREFIX): path for path in sorted(folder.glob(f"{_PREFIX}*"))}
    found = {tag: path for tag, path in found.items() if "." not in tag}
    return found if len(found) > 1 else {}


def read_flores(folder: Path, direction: str | None) -> RawRows:
    """The rows of all directions, or of one.

    Args:
        folder: With a file a language.
        direction: Such as `de-en`; None: all that are evaluated.

    Raises:
        DataError: a code or direction is not known, a file is no text, or files have unequal numbers of lines.
    """
    files = flores_files(folder)
    for tag, path in files.items():
        if tag not in LANGUAGES:
            raise DataError(f"{path}: {unknown('language code', tag, LANGUAGES)}")
    texts = {tag: _lines(path) for tag, path in files.items()}
    first = next(iter(texts))
    for tag, lines in texts.items():
        if len(lines) != len(texts[first]):
            raise DataError(
                f"{files[tag]} has {len(lines)} lines and {files[first].name} {len(texts[first])}: parallel files "
                "have one for each sentence."
            )
    pairs = directions(list(files))
    if direction is not None:
        names = {f"{one}-{other}": (one, other) for one in files for other in files if one != other}
        if direction not in names:
            raise DataError(f"{folder}: {unknown('direction', direction, names)}")
        pairs = [names[direction]]
    if not pairs:
        raise DataError(f"{folder} has neither flores.en nor flores.zh: name a direction, such as {folder}@de-fr.")
    rows: list[tuple[int, object]] = [
        (
            at + 1,
            {
                "id": f"{one}-{other}-{at + 1}",
                "source_text": texts[one][at],
                "target_text": texts[other][at],
                "source_lang": one,
                "target_lang": other,
            },
        )
        for at in range(len(texts[first]))
        for one, other in pairs
    ]
    return RawRows(str(folder), rows, unit="line")


def _lines(path: Path) -> list[str]:
    try:
        return read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start}): save it as such.") from None
