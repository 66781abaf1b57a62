"""Self-distillation: who writes, what of it is trained on, and that rows stay in their places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from everlearn.data.instance import SYNTHETIC, TaskStream
from everlearn.errors import RecipeError
from everlearn.files import read_json, read_jsonl, write_jsonl
from everlearn.methods.registry import make_method
from everlearn.methods.stack import assemble
from everlearn.recipe import MethodConfig, make_recipe
from everlearn.runs.loop import execute
from everlearn.synthesis.rewriting import Rewriting
from tests.methods.contexts import Bench, number_stream

STREAM = number_stream(rows=6)


def own_words(text: str, stream: object) -> str:
    """Says the same about even numbers, something else about odd ones, and nothing about one."""
    answer = text.split("to this is:\n")[1].split("\n")[0]
    return "" if "1000" in text else f"it is {answer}" if answer == "even" else "whatever"


@pytest.mark.parametrize("writer", ["latest", "base"])
def test_answers_that_say_the_same_take_the_place_of_the_given_ones(
    writer: str, tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    bench.answerer.write = bench.writer.write = own_words
    method = make_method("self_distillation", {"writer": writer, "agreement": 0.4})
    stage = method.stages(STREAM)[1]
    context = bench.context(stage)
    rows = method.rehearsal(context).rewritten
    assert rows is not None
    assert [replace(row, output="", origin="real") for row in rows] == [replace(row, output="") for row in stage.rows]
    for row, given in zip(rows, stage.rows, strict=True):
        is_taken = given.output == "even" and "1000" not in given.input
        assert (row.output, row.origin) == (("it is even", SYNTHETIC) if is_taken else (given.output, "real"))
    assert [bool(bench.answerer.calls), bool(bench.writer.calls)] == [writer == "latest", writer == "base"]
    counts = read_json(next(tmp_path.rglob("counts.json")))
    odd = sum(row.output == "odd" for row in stage.rows)
    assert counts["rewritten"] == sum(row.origin == SYNTHETIC for row in rows)  # type: ignore[call-overload, index]
    assert sum(counts["as given"].values()) + counts["rewritten"] == 6  # type: ignore[call-overload, index]
    assert odd > 0
    found = method.findings(context)
    assert found is not None
    assert found.tables["answers rewritten"].rows == [["second", 6, counts["rewritten"]]]  # type: ignore[call-overload, index]
    assert method.rehearsal(context).rewritten == rows
    assert len(bench.answerer.calls) + len(bench.writer.calls) == 1, "what stands is not written again"


def test_a_label_has_no_other_words(tmp_path: Path, tiny_model: Path) -> None:
    bench, method = Bench(tmp_path, tiny_model), make_method("self_distillation", {})
    stage = method.stages(number_stream(rows=6, labels=True))[0]
    assert method.rehearsal(bench.context(stage)).rewritten == list(stage.rows)
    assert not bench.answerer.calls


def test_a_prompt_that_leaves_no_room_keeps_the_given_answer(tmp_path: Path, tiny_model: Path) -> None:
    bench, method = Bench(tmp_path, tiny_model), make_method("self_distillation", {})
    task = STREAM.tasks[0]
    long = replace(task.train[0], input="the cat " * 2000)
    stage = method.stages(TaskStream((replace(task, train=(long, *task.train[1:])),)))[0]
    bench.answerer.write = own_words
    rows = method.rehearsal(bench.context(stage)).rewritten
    assert rows is not None
    assert rows[0] == long
    assert len(bench.answerer.calls[0][0]) == 5


def test_two_that_rewrite_are_refused_and_others_may_be_stacked() -> None:
    assert assemble(MethodConfig.model_validate(["self_distillation", "experience_replay", "l2"]))
    with pytest.raises(RecipeError, match=r"self_distillation: .*agreement"):
        make_method("self_distillation", {"agreement": 2})


def test_what_was_rewritten_is_what_a_run_trains_on(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rewriting, "fault_of", lambda self, row, *_: None if row.input.endswith("1") else "no")
    rows = [{"instruction": "Say it.", "input": f"thing {at}", "output": f"word {at}"} for at in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    tree = {
        "runs_dir": str(tmp_path),
        "model": {"base": str(tiny_model), "device": "cpu", "lora": {"rank": 2}, "template": "vanilla"},
        "stream": {"tasks": [{"name": "things", "train": str(tmp_path / "train.jsonl"), "demonstrations": 0}]},
        "training": {"epochs": 1, "batch_size": 4},
        "evaluation": {"max_new_tokens": 2, "general": False, "bootstrap_samples": 100},
    }
    losses = []
    for method in ("sequential", "self_distillation"):
        folder = execute(make_recipe({**tree, "name": method, "method": method})).folder
        history = list(read_jsonl(folder / "stages" / "01-things" / "training" / "history.jsonl"))
        losses.append([row["loss"] for row in history])
    assert losses[0] != losses[1]
    trained = list(read_jsonl(next(folder.rglob("rows.jsonl"))))
    assert [row["input"] for row in trained if row.get("origin") == SYNTHETIC] == ["thing 1"]
