"""Translations by direction: which were trained, what was gained, and how well tags were kept."""

from __future__ import annotations

import json
from pathlib import Path

from everlearn.data.translation import asked
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from tests.report import run_folders
from tests.report.pages import parse

TASKS = ("sentiment", "ruvian")


def of_translations(folder: Path) -> Path:
    """A run whose first task is trained from German to English, and tested there and from German to French."""
    run_folders.without_records(run_folders.make_run(folder, tasks=TASKS, rows=4))
    trained = [{"instruction": asked("German", "English"), "input": "x", "output": "y", "task": "sentiment"}]
    run_folders.write_jsonl(folder / "stages" / "01-sentiment" / "data" / "sentiment" / "train.jsonl", trained)
    for path in folder.glob("stages/*/predictions/sentiment/predictions.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for at, row in enumerate(rows):
            row["instruction"] = asked("German", "French" if at % 2 else "English")
            row["written"] = "two words</think><answer>y</answer>" if at < 3 else "no tags"
        run_folders.write_jsonl(path, rows)
    return folder


def test_directions_are_told_apart_with_their_tags_and_walks(tmp_path: Path) -> None:
    tree = parse(page(read_study(of_translations(tmp_path / "run"))))
    part = next(part for part in tree.all("section") if part.attributes.get("id") == "translating")
    rows = {
        row.one("th").text: [cell.text for cell in row.all("td")] for row in part.all("tr") if len(row.all("th")) == 1
    }
    trained, other = rows["German to English"], rows["German to French"]
    assert (trained[0], other[0]) == ("trained", "seen-unseen")
    assert trained[5].startswith("100.0"), "both answers from German to English have their tags"
    assert other[5].startswith("50.0")
    assert (trained[6], other[6]) == ("2.0", "1.0"), "words of a walk, none where there are no tags"
    assert "ruvian" in rows, "a task whose rows name no direction counts as one"


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    folder = run_folders.without_records(run_folders.make_run(tmp_path / "run", tasks=TASKS, rows=4))
    assert 'id="translating"' not in page(read_study(folder))
