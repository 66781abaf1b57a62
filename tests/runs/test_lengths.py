"""Rows longer than a run trains on: told in the account of their task, or left out where the recipe says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from everlearn.data.instance import SYNTHETIC, Instance, Task, TaskStream
from everlearn.data.mixture import Mixture, shuffled
from everlearn.data.prompts import get_template
from everlearn.errors import DataError, RunError
from everlearn.files import read_json, read_jsonl
from everlearn.methods.registry import method_class
from everlearn.progress import LineProgress
from everlearn.recipe import Recipe, TrainingConfig, make_recipe
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.runs.lengths import rehearsed_within_limits, within_limits
from everlearn.runs.loop import execute
from tests.data.byte_tokenizer import make_byte_tokenizer
from tests.runs.test_loop import tiny_recipe

TOKENIZER = make_byte_tokenizer()
TEMPLATE = get_template("vanilla", TOKENIZER)
ROWS = tuple(
    Instance("", "q" * prompt, "a" * answer, "deed", id=f"{prompt}-{answer}")
    for prompt, answer in ((39, 9), (40, 9), (39, 10), (90, 90))  # a prompt begins with BOS, an answer ends with EOS
)


def limited(
    too_long: str, rows: tuple[Instance, ...] = ROWS, classes: tuple[str, ...] = (), **others: bool
) -> TaskStream:
    training = {"max_prompt_tokens": 40, "max_target_tokens": 10, "too_long": too_long}
    recipe = make_recipe({"training": training, "evaluation": {"max_new_tokens": 9}})
    stream = TaskStream((Task("deed", rows, ROWS[1:3], classes=classes),), "made")
    return within_limits(recipe, stream, TEMPLATE, TOKENIZER, **{"trains": True, **others})


def test_cut_rows_are_counted_and_stay() -> None:
    stream = limited("cut")
    account = stream.accounts[0]
    assert stream["deed"].train == ROWS
    assert (account.cut_prompts, account.cut_answers, account.too_long) == (2, 2, 0)
    assert account.sentences() == [
        "task deed: 2 of 4 prompts are longer than training.max_prompt_tokens (40) and lose their end.",
        "task deed: 2 of 4 answers are longer than training.max_target_tokens (10) and lose their end and their end "
        "token.",
        "task deed: 1 of 2 evaluation prompts are longer than training.max_prompt_tokens (40): they are asked whole, "
        "although no prompt of that length is trained on.",
        "task deed: 1 of 2 evaluation answers are longer than evaluation.max_new_tokens (9), so no model can give "
        "them whole.",
    ]


def test_longer_rows_are_left_out_where_the_recipe_says_so() -> None:
    stream = limited("leave_out")
    account = stream.accounts[0]
    assert [row.id for row in stream["deed"].train] == ["39-9"]
    assert (account.cut_prompts, account.cut_answers, account.too_long) == (0, 0, 3)
    assert "task deed: 3 of 4 training instances are left out" in account.sentences()[0]


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"task deed: all 3 training rows.*too_long to cut"):
        limited("leave_out", ROWS[1:])
    classes = ("a" * 9, "a" * 10)
    with pytest.raises(DataError, match=rf"task deed: all 1 training rows of its class '{classes[1]}' are longer"):
        limited("leave_out", ROWS[:3], classes)
    assert limited("leave_out", ROWS[:3], classes[:1])["deed"].train == ROWS[:1]


def test_rows_that_are_not_trained_on_are_not_called_cut() -> None:
    account = limited("cut", trains=False).accounts[0]
    assert (account.cut_prompts, account.cut_answers) == (0, 0)


@pytest.mark.parametrize(("too_long", "kept", "fate"), [("cut", 4, "cut"), ("leave_out", 3, "left out")])
def test_written_rows_are_told_apart_from_real_ones_that_were_counted_before(
    too_long: str, kept: int, fate: str
) -> None:
    training = TrainingConfig(max_prompt_tokens=40, max_target_tokens=10, too_long=too_long)  # type: ignore[arg-type]
    written = [replace(row, origin=SYNTHETIC) for row in (ROWS[0], ROWS[3])]
    rows, notes = rehearsed_within_limits([*ROWS[:2], *written], training, TEMPLATE, TOKENIZER)
    assert len(rows) == kept
    assert notes == {"deed": f"1 of 2 rehearsed rows are too long and are {fate}."}


def long_rows_recipe(folder: Path, model: Path, too_long: str) -> Recipe:
    """Of twelve rows of `colours`, two have long questions and one of them a long answer."""
    training = {"epochs": 1, "batch_size": 4, "max_prompt_tokens": 64, "max_target_tokens": 16, "too_long": too_long}
    recipe = tiny_recipe(folder, model, training=training)
    path = folder / "data" / "colours.train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["input"], rows[1]["input"], rows[1]["output"] = "why " * 60, "who " * 60, "they " * 30
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return recipe


@pytest.mark.parametrize(
    ("too_long", "told", "trained", "sentence"),
    [
        ("cut", "2 prompts cut, 1 answer cut", 12, "2 of 12 prompts are longer than training.max_prompt_tokens (64)"),
        ("leave_out", "2 rows left out", 10, "2 of 12 training instances are left out"),
    ],
)
def test_a_run_tells_what_it_cuts_or_leaves_out(
    too_long: str, told: str, trained: int, sentence: str, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = long_rows_recipe(tmp_path, tiny_model, too_long)
    lines: list[str] = []
    folder = execute(recipe, progress=LineProgress(lines.append)).folder
    assert next(line for line in lines if line.startswith("data:")).startswith(f"data: {told}")
    account = read_json(folder / "manifest.json")["data"][0]  # type: ignore[index]
    assert (account["cut_prompts"], account["too_long"]) == ((2, 0) if too_long == "cut" else (0, 2))
    summary = read_json(folder / "stages" / "01-colours" / "training" / "summary.json")
    assert summary["rows"] == trained  # type: ignore[index]
    assert sentence in page(read_study(folder))


def test_a_run_tells_what_becomes_of_written_rows_that_it_rehearses(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [Instance("", "why " * count, "x", "colours", SYNTHETIC) for count in (2, 60)]
    rehearsed = shuffled("written", written)
    recipe = long_rows_recipe(tmp_path, tiny_model, "leave_out")
    method = method_class(recipe.method.name)
    monkeypatch.setattr(method, "rehearsal", lambda _, context: rehearsed if context.stage.seen else Mixture())
    lines: list[str] = []
    folder = execute(recipe, progress=LineProgress(lines.append)).folder
    told = "1 of 2 rehearsed rows are too long and are left out."
    assert f"stage 02-animals: task colours: {told}" in lines
    account = read_json(folder / "manifest.json")["data"][0]  # type: ignore[index]
    assert account["notes"] == [f"stage 02-animals: {told}", f"stage 03-places: {told}"]
    assert len(list(read_jsonl(folder / "stages" / "02-animals" / "rehearsal.jsonl"))) == 1


def test_a_run_folder_older_than_a_key_goes_on_with_its_default(tmp_path: Path, tiny_model: Path) -> None:
    recipe = tiny_recipe(tmp_path, tiny_model)
    path = execute(recipe).folder / "recipe.yaml"
    path.write_text(path.read_text().replace("  too_long: cut\n", ""))
    execute(recipe)
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"too_long": "leave_out"})})
    with pytest.raises(RunError, match=r"differs in training\.too_long"):
        execute(other)
