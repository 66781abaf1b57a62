"""Rows of every form with one value gone or wrong: set aside with the reason, or every text was in the row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everlearn.data.formats import ReadResult, read_rows
from tests.data.test_row_forms import KEPT, REFUSED
from tests.malformed.answers import refusal
from tests.malformed.spoilt_json import spoilt

FORMS = {name: entry[0] for name, entry in {**KEPT, **REFUSED}.items()}


def texts_in(value: Any) -> Iterator[str]:
    """Every text and number in a row, as text."""
    if isinstance(value, dict):
        yield from (text for inner in value.values() for text in texts_in(inner))
    elif isinstance(value, list):
        yield from (text for inner in value for text in texts_in(inner))
    elif value is not None and value == value and abs(value if isinstance(value, float) else 0) < float("inf"):
        yield str(value)


def invented(text: str, known: list[str]) -> str:
    """What of a text is in none of the known ones, of which it may be a part or several."""
    if any(text in part for part in known):
        return ""
    for part in sorted(filter(str.strip, known), key=len, reverse=True):
        text = text.replace(part, "")
    return text.strip()


@pytest.mark.parametrize("name", FORMS)
def test_no_text_comes_from_elsewhere_than_the_row(name: str, tmp_path: Path) -> None:
    path, tried, used = tmp_path / "rows.jsonl", 0, 0
    for place, changed in spoilt(FORMS[name], at_once=5):
        tried += 1
        path.write_text(json.dumps(changed) + "\n")
        read: list[ReadResult] = []
        if refusal(place, lambda read=read: read.append(read_rows(str(path), task="t"))) is not None:
            continue
        (result,) = read
        assert result.total == 1
        if result.bad:
            assert "\n" not in str(result.bad[0]), place
            continue
        used += 1
        known = list(texts_in(changed))
        for row in result.rows:
            texts = (row.instruction, row.input, row.output, *row.references, *(turn.content for turn in row.history))
            assert not [text for text in texts if invented(text, known)], place
            assert row.output.strip(), place
    assert tried >= 10
    assert used >= 2 or name in REFUSED
