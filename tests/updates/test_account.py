"""The account of a version's text: rows and keys that do not become text are counted and told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.cli.update import trained
from everlearn.cli.update_tables import plan_tables
from everlearn.data.text import TextAccount, TextSource
from everlearn.files import read_json
from everlearn.progress import LineProgress
from everlearn.updates.config import UpdateRecipe
from everlearn.updates.prepare import prepare
from tests.updates.tiny_runs import tiny_tree, write_versions

ROWS = [
    {"text": "one", "meta": {"url": "x"}, "id": 1},
    {"text": " \n", "meta": {}, "id": 2},
    {"text": "half \ud800", "id": 3},
    {"text": "four", "id": None},
]


def test_rows_and_keys_that_do_not_become_text_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    account = TextAccount()
    assert list(TextSource(str(path)).documents(account)) == ["one", "half \ufffd", "four"]
    assert account == TextAccount(rows=4, blank=1, mended=1, unread={"meta": 1, "id": 3})


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_columns_that_are_not_read_are_counted(kind: str, tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"text": ["one", "", "two"], "url": ["a", "b", "c"]})
    path = tmp_path / kind
    table.to_parquet(path) if kind == "parquet" else table.save_to_disk(path)
    account = TextAccount()
    assert list(TextSource(str(path)).documents(account)) == ["one", "two"]
    assert account == TextAccount(rows=3, blank=1, unread={"url": 3})


def test_plain_text_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("one\n\n\n\ntwo\n\n")
    account = TextAccount()
    assert list(TextSource(str(tmp_path / "plain.txt")).documents(account)) == ["one", "two"]
    assert account == TextAccount()


def test_a_file_with_another_key_in_every_row_fills_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "t", f"key{at}": 1}) + "\n" for at in range(500)))
    account = TextAccount()
    list(TextSource(str(path)).documents(account))
    assert len(account.unread) == 100


def test_plan_run_manifest_and_report_tell_what_is_left_out(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = [*write_versions(tmp_path, 2)]
    path = tmp_path / "rows.jsonl"
    texts = Path(str(entries[1]["data"])).read_text().split("\n\n")
    path.write_text("".join(json.dumps({"text": text, "<url>": "u"}) + "\n" for text in [*texts, " "]))
    entries[1]["data"] = str(path)
    recipe = UpdateRecipe.model_validate({**tiny_tree(tmp_path / "run"), "versions": entries})
    told = f"version v2: keys that are not read: '<url>' ({len(texts) + 1} rows)."
    plan = plan_tables(recipe, prepare(recipe, progress=LineProgress()))
    assert f"Note: version v2: 1 of {len(texts) + 1} rows hold no text and are passed over." in plan
    assert f"Note: {told}" in plan
    assert "version v1:" not in plan
    lines: list[str] = []
    folder = Path(recipe.runs_dir) / recipe.name
    trained(recipe, folder, LineProgress(lines.append))
    assert "data: 1 rows without text, keys '<url>' not read; the report says of which versions" in lines
    first, second = read_json(folder / "manifest.json")["updates"]  # type: ignore[index]
    assert (first["rows"], second["rows"], second["blank_rows"]) == (0, len(texts) + 1, 1)
    assert second["trained_tokens"] <= second["train_tokens"]
    page = (folder / "report.html").read_text()
    assert "What the text held" in page
    assert "keys that are not read: '&lt;url&gt;'" in page


def test_steps_that_leave_text_out_are_told(tmp_path: Path) -> None:
    entries: list[dict[str, object]] = [*write_versions(tmp_path, 1)]
    entries[0]["steps"] = 5
    recipe = UpdateRecipe.model_validate({**tiny_tree(tmp_path / "run"), "versions": entries})
    plan = plan_tables(recipe, prepare(recipe, progress=LineProgress()))
    assert "Note: version v1: steps leaves " in plan
