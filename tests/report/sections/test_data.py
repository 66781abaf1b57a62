"""What the data held: the account of each task as the manifest holds it, told in a section of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from tests.report import run_folders
from tests.report.pages import Element, parse


def section(folder: Path) -> Element | None:
    tree = parse(page(read_study(folder)))
    return next((part for part in tree.all("section") if part.attributes.get("id") == "data"), None)


def with_manifest(folder: Path, **values: object) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def test_the_table_holds_the_counts_of_the_manifest(single: Path):
    part = section(single)
    assert part is not None
    first, second = part.one("tbody").all("tr")[:2]
    assert [cell.text for cell in first.all("td")][:7] == ["340", "3", "–", "40", "300", "12", "40"]
    assert [cell.text for cell in second.all("td")][:7] == ["340", "–", "–", "40", "300", "–", "40"]
    assert first.one("th").text == "sentimentsentiment.jsonl (alpaca)"
    assert "exact match3 distinct short answers" in first.text


def test_what_is_not_used_as_it_stands_is_told_in_sentences(single: Path):
    part = section(single)
    assert part is not None
    assert [item.text for item in part.one("ul", "told").all("li")] == [
        "task sentiment: 3 of 340 rows of train cannot be used and are set aside (line 3: no output).",
        "task sentiment: keys of train that are not read: 'history' (9 rows).",
        "task sentiment: 12 of 300 prompts are longer than training.max_prompt_tokens (1,024) and lose their end.",
    ]


def test_a_run_that_uses_every_row_says_so(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "run", tasks=("sentiment",), rows=4)
    part = section(with_manifest(folder, data=[{"task": "sentiment", "trained": 9, "newer": 1}]))
    assert part is not None
    assert "Every row is used as it stands." in part.text


def test_notes_are_told_there_and_a_run_without_an_account_has_no_section(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "run", tasks=("sentiment",), rows=4)
    assert section(with_manifest(folder, data=[])) is None
    note = "2 of 22 rows cannot be used & are set aside in <bad_rows.jsonl>."
    part = section(with_manifest(folder, notes=[note]))
    assert part is not None
    assert note in part.text


def test_a_comparison_tells_what_only_one_method_cuts(tmp_path: Path):
    folder = run_folders.make_comparison(tmp_path / "compared", labels=("sequential", "ssr"), seeds=(1, 2), rows=4)
    path = folder / "ssr-s1"
    (first, *others) = json.loads((path / "manifest.json").read_text())["data"]
    with_manifest(path, data=[{**first, "notes": ["stage 02-ruvian: 1 of 9 rehearsed rows are too long."]}, *others])
    part = section(folder)
    assert part is not None
    told = [item.text for item in part.all("li")]
    assert told[-1] == "SSR: task sentiment: stage 02-ruvian: 1 of 9 rehearsed rows are too long."
    assert sum("12 of 300 prompts" in text for text in told) == 1
    assert "Shown: seed 1." in part.text


@pytest.mark.parametrize("data", [7, [7], [{"task": "a", "cut_prompts": "many"}], [{"parts": {}}]])
def test_an_account_of_another_form_is_refused(data: object, tmp_path: Path):
    folder = with_manifest(run_folders.make_run(tmp_path / "run", tasks=("sentiment",), rows=4), data=data)
    with pytest.raises(RunError, match=r"manifest\.json is corrupt"):
        section(folder)
