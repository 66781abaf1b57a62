"""Parallel lines in a file for each language."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.data.formats import read_rows
from everlearn.errors import DataError


def parallel(folder: Path, **languages: str) -> str:
    for tag, text in languages.items():
        (folder / f"flores.{tag}").write_text(text, encoding="utf-8")
    return str(folder)


def test_a_folder_gives_all_directions_line_by_line(tmp_path: Path) -> None:
    source = parallel(tmp_path, de="eins\nzwei\n", en="one\ntwo\n", zh="一\n二\n", fr="un\ndeux\n")
    rows = read_rows(source, task="t").rows
    assert len(rows) == 2 * 10
    assert [row.id for row in rows[:2]] == ["de-en-1", "en-de-1"]
    assert {row.output for row in rows[:10]} == {"eins", "one", "一", "un"}
    assert rows[0].instruction == "Please translate the following German Source sentence into English."


def test_one_direction_is_named_behind_the_folder(tmp_path: Path) -> None:
    source = parallel(tmp_path, de="eins\nzwei", fr="un\ndeux")
    rows = read_rows(f"{source}@de-fr", task="t").rows
    assert [(row.input, row.output) for row in rows] == [("eins", "un"), ("zwei", "deux")]


@pytest.mark.parametrize(
    ("languages", "behind", "fault"),
    [
        ({"de": "eins", "xx": "a"}, "", "unknown language code 'xx'"),
        ({"de": "eins", "en": "one\ntwo"}, "", "has 2 lines and flores.de 1"),
        ({"de": "eins", "en": "one"}, "@de-fr", "unknown direction 'de-fr'"),
        ({"de": "eins", "fr": "un"}, "", "has neither flores.en nor flores.zh"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, languages: dict[str, str], behind: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        read_rows(parallel(tmp_path, **languages) + behind, task="t")
