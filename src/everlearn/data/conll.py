"""CoNLL files: a word a line with its columns, the last one its tag; a blank line ends a sentence.

Columns are divided by white space; those between word and tag (parts of speech, chunks) are not read, which is noted.
`-DOCSTART-` lines stand for no sentence. Row numbers are those of a sentence's first line.
"""

from __future__ import annotations

from everlearn.data.bad_rows import BadRow
from everlearn.data.raw_rows import RawRows

SUFFIXES = (".conll", ".bio")
_DOCUMENT = "-DOCSTART-"


def read_conll(text: str, file: str) -> RawRows:
    """Reads the sentences of a file as rows of `tokens` and `ner_tags`; one with a line of one column is bad."""
    rows, between, sentence = list[tuple[int, object]](), 0, list[tuple[int, list[str]]]()
    raw = RawRows(file, rows, unit="line")
    for number, line in enumerate([*text.split("\n"), ""], 1):
        fields = line.split()
        if fields and fields[0] != _DOCUMENT:
            sentence.append((number, fields))
            continue
        short = next(((at, one) for at, one in sentence if len(one) < 2), None)
        if short:
            raw.bad.append(
                BadRow(file, short[0], "a word without a tag: a line has the word first, its tag last", short[1])
            )
        elif sentence:
            columns = [one for _, one in sentence]
            between = max(between, *(len(one) - 2 for one in columns))
            row = {"tokens": [one[0] for one in columns], "ner_tags": [one[-1] for one in columns]}
            rows.append((sentence[0][0], row))
        sentence = []
    if between:
        raw.notes.append(f"{between} column{'s' * (between > 1)} between words and tags are not read.")
    return raw
