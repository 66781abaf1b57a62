"""LAMOL: how much is written, what is taken of it, and both forms of a row in one step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everlearn.data.instance import Instance, Turn
from everlearn.data.prompts import VanillaTemplate
from everlearn.errors import RecipeError
from everlearn.files import read_json, read_jsonl, write_jsonl
from everlearn.methods.registry import make_method
from everlearn.progress import LineProgress
from everlearn.recipe import make_recipe
from everlearn.runs.loop import execute
from everlearn.synthesis.written_form import WrittenForm, question_and_answer
from everlearn.synthesis.written_rows import rows_a_task
from everlearn.training.rows import EncodedRow
from tests.conftest import make_tiny_model
from tests.data.byte_tokenizer import make_byte_tokenizer, read
from tests.methods.contexts import Bench, facts_of, number_stream

STREAM = number_stream(rows=40)
MARK = "### Answer"


def golden(golden_dir: Path, part: str) -> list[dict]:
    cases = json.loads((golden_dir / "baselines" / "lamol.json").read_text())["cases"]
    return [case for case in cases if case["part"] == part]


def test_the_recorded_counts(golden_dir: Path) -> None:
    for case in golden(golden_dir, "counts"):
        about = (case["new_task_rows"], case["earlier_tasks"], case["gamma"])
        assert rows_a_task(*about) == case["expected_per_task"]
        assert rows_a_task(*about) * case["earlier_tasks"] == case["expected_total"]
        assert rows_a_task(*about, "down") == case["expected_per_task_other_code"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a\nb\n{MARK}\nc", ("a\nb", "c")),
        (f"a\n{MARK}  \nc\nd", ("a", "c\nd")),
        (f"\n{MARK}\n", ("", "")),
        ("a\nc", None),
        (f"a\nsee {MARK}\nc", None),
        (f"a\n{MARK}\nb\n{MARK}\nc", None),
    ],
)
def test_a_text_is_a_row_if_the_mark_stands_in_it_once_on_a_line_of_its_own(text: str, expected: object) -> None:
    assert question_and_answer(text, MARK) == expected


def test_a_row_is_written_behind_a_line_and_what_is_too_long_loses_the_end_of_its_input() -> None:
    tokenizer = make_byte_tokenizer()
    row = Instance("Do it.", "one two", "yes", "t", history=(Turn("system", "Be kind."),))
    line = "Write:\n"
    whole = f"Be kind.\n\nDo it.\n\none two\n{MARK}\nyes"
    for limit in range(len(line + whole) + 2, 30, -1):
        form = WrittenForm(VanillaTemplate(), MARK, {"t": line}, limit)
        prompt, target = form.prompt_ids(row, tokenizer), form.target_ids(row, tokenizer)
        lost = len(line + whole) + 2 - limit
        expected = whole.replace("one two", "one two"[: 7 - lost] if lost <= 7 else "")
        assert read(tokenizer, prompt + target) == f"<s>{line}{expected}</s>"
        assert form.fits(row, tokenizer) == (lost <= 7)


def writes_rows(*texts: str):
    """Writes these texts in turn."""
    left = iter(texts * 1000)
    return lambda prompt, stream: next(left)


def bench_of(folder: Path, model: Path, *texts: str) -> Bench:
    bench = Bench(folder, model)
    bench.answerer.write = writes_rows(*texts)
    return bench


@pytest.mark.parametrize("asks_for", ["task", "any"])
def test_before_a_stage_rows_of_the_earlier_tasks_are_written_by_the_last_model(
    asks_for: str, tmp_path: Path, tiny_model: Path
) -> None:
    bench = bench_of(tmp_path, tiny_model, f"the cat\n{MARK}\nyes", "the cat runs", f"the dog\n{MARK}\nno")
    method = make_method("lamol", {"gamma": 0.3, "asks_for": asks_for})
    stages = method.stages(STREAM)
    first = method.rehearsal(bench.context(stages[0]))
    assert [group.name for group in first.groups] == ["lamol/rows"]
    assert not bench.answerer.calls
    context = bench.context(stages[2])
    mixture = method.rehearsal(context)
    asked_with = [prompt for call in bench.answerer.calls for prompt in call[0]]
    assert [("first" in prompt, "second" in prompt) for prompt in asked_with] == (
        [(True, False), (False, True)] if asks_for == "task" else [(False, False)]
    )
    assert [call[1].samples_per_prompt for call in bench.answerer.calls] == ([6, 6] if asks_for == "task" else [12])
    assert {(call[1].top_k, call[1].temperature, call[1].top_p) for call in bench.answerer.calls} == {(20, 1.0, 1.0)}
    written, rows = mixture.groups
    assert [(row.query, row.output) for row in written.rows[:3]] == [("the cat", "yes"), ("the dog", "no")] * 1 + [
        ("the cat", "yes")
    ]
    assert len(written.rows) == 8
    tasks = [row.task for row in written.rows]
    assert tasks == (["first"] * 4 + ["second"] * 4 if asks_for == "task" else ["first", "second"] * 4)
    assert (rows.weight, rows.mean, rows.per_step) == (0.25, "own", None)
    assert rows.rows == (*stages[2].rows, *written.rows)
    assert rows.follows == (*(("own", at) for at in range(40)), *(("lamol", at) for at in range(8)))
    asked = len(bench.answerer.calls)
    assert method.rehearsal(context) == mixture
    assert len(bench.answerer.calls) == asked, "what stands is not written again"
    found = method.findings(context)
    assert found is not None
    assert [row[1:] for row in found.tables["rows written"].rows] == (
        [[6, 6, 4]] * 2 if asks_for == "task" else [[12, 12, 8]]
    )


def test_what_is_rejected_is_asked_for_again_as_often_as_is_said(tmp_path: Path, tiny_model: Path) -> None:
    texts = ("no mark", f"the cat\n{MARK}\nyes")
    for attempts, expected in ((1, [8]), (3, [8, 4, 2])):
        bench = bench_of(tmp_path / str(attempts), tiny_model, *texts)
        method = make_method("lamol", {"gamma": 0.2, "max_attempts": attempts})
        mixture = method.rehearsal(bench.context(method.stages(STREAM)[1]))
        assert [call[1].samples_per_prompt for call in bench.answerer.calls] == expected
        assert len(mixture.groups[0].rows) == sum(expected) // 2
        assert len({call[1].seed for call in bench.answerer.calls}) == attempts
        counts = read_json(next(bench.folder.rglob("counts.json")))
        assert counts == {
            "asked": 8,
            "written": sum(expected),
            "kept": sum(expected) // 2,
            "rejected": {"not exactly one mark": sum(expected) // 2},
        }


def test_too_few_new_rows_for_one_of_each_task_are_told(tmp_path: Path, tiny_model: Path) -> None:
    bench, lines = Bench(tmp_path, tiny_model), list[str]()
    method = make_method("lamol", {"gamma": 0.01})
    context = replace(bench.context(method.stages(STREAM)[2]), progress=LineProgress(lines.append))
    assert [group.name for group in method.rehearsal(context).groups] == ["lamol/rows"]
    assert "raise method.gamma" in "".join(lines)


def test_a_row_with_the_mark_and_nonsense_are_refused() -> None:
    task = STREAM.tasks[0]
    marked = Instance("Do it.", f"one\n{MARK}\ntwo", "x", task.name, id="r7")
    stream = type(STREAM)((type(task)(task.name, (*task.train, marked), ()),))
    with pytest.raises(
        RecipeError, match=r"^method lamol: task first, training row r7 has a line '### Answer'.*set mark"
    ):
        make_method("lamol", {}).check(facts_of(stream))
    make_method("lamol", {"mark": "=>"}).check(facts_of(stream))
    for options, words in (
        ({"gamma": 0}, "gamma"),
        ({"row_weight": 0}, "row_weight"),
        ({"mark": " x"}, "mark"),
        ({"mark": "a\nb"}, "mark"),
        ({"temperature": 0}, "temperature"),
        ({"max_attempts": 0}, "max_attempts"),
    ):
        with pytest.raises(RecipeError, match=f"method lamol: {words}"):
            make_method("lamol", options)


def test_with_tokens_of_its_own_what_is_handed_back_asks_and_answers_as_it_was_measured(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = []
    for task in ("colours", "animals"):
        rows = [{"instruction": f"Say {task}.", "input": f"thing {at}", "output": f"{task} {at}"} for at in range(12)]
        write_jsonl(tmp_path / f"{task}.jsonl", rows)
        texts += [" ".join(row.values()) for row in rows]
    base = make_tiny_model(tmp_path / "base", "llama", texts)
    tree = {
        "runs_dir": str(tmp_path),
        "name": "run",
        "method": {"name": "lamol", "tokens": "special", "gamma": 1.0, "max_new_tokens": 30},
        "model": {"base": str(base), "device": "cpu", "tuning": "full"},
        "stream": {"tasks": [{"name": n, "train": str(tmp_path / f"{n}.jsonl")} for n in ("colours", "animals")]},
        "training": {"epochs": 30, "batch_size": 8, "learning_rate": 1e-2},
        "evaluation": {"max_new_tokens": 6, "general": False, "bootstrap_samples": 100},
    }
    with pytest.raises(RecipeError, match=r"method lamol: .*set method.tokens to text, or model.tuning to full"):
        execute(make_recipe({**tree, "model": {"base": str(base), "device": "cpu"}}))
    result = execute(make_recipe(tree))
    written = list(read_jsonl(next(result.folder.rglob("kept.jsonl"))))
    assert written, "it has learnt to write rows"
    assert all(row["output"] for row in written)
    folder = result.folder / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    predicted = [
        row for path in (result.folder / "stages" / "02-animals").rglob("*.jsonl") for row in read_jsonl(path)
    ]
    predicted = [row for row in predicted if "prediction" in row]
    assert predicted
    for row in predicted:
        asked = [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
        ids = torch.tensor([prompt["input_ids"]])
        with torch.inference_mode():
            answer = model.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
        assert tokenizer.decode(answer, skip_special_tokens=True).strip() == row["prediction"]
    assert execute(make_recipe(tree)).matrix == result.matrix


def test_a_task_whose_token_would_be_the_mark_is_refused() -> None:
    facts = facts_of(type(STREAM)((replace(STREAM.tasks[0], name="ans"), *STREAM.tasks[1:])))
    facts = replace(facts, model=facts.model.model_copy(update={"tuning": "full"}))
    with pytest.raises(RecipeError, match=r"rows of task ans would be asked for by __ans__.*another name"):
        make_method("lamol", {"tokens": "special"}).check(facts)
    make_method("lamol", {"tokens": "special", "asks_for": "any"}).check(facts)
    make_method("lamol", {}).check(facts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": "special", "mark": "=>"}, "leave mark out"),
        ({"mark_weight": 5}, "mark_weight weighs a token, so it needs tokens: special"),
    ],
)
def test_options_of_the_other_form_are_refused(options: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=f"method lamol: .*{words}"):
        make_method("lamol", options)


def test_answers_to_written_rows_can_be_kept_near_those_of_the_model_that_wrote_them(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("lamol", {"distillation": 0.5})
    stages = method.stages(STREAM)
    assert not method.influences(bench.context(stages[0]))
    (kept,) = method.influences(bench.context(stages[1]))
    rows = [EncodedRow((1, 2, 3, 4), 2, group) for group in ("lamol", "own", "lamol/rows", "lamol")]
    assert kept.units(rows) == 4
    assert {"distils", "rehearses"} <= method.traits
    assert "distils" not in make_method("lamol", {}).traits


def test_a_template_that_cannot_word_the_line_that_asks_is_refused() -> None:
    facts = facts_of(STREAM)
    facts = replace(facts, model=facts.model.model_copy(update={"template": "relation_classification_qa"}))
    with pytest.raises(RecipeError, match=r"relation_classification_qa cannot word: set method\.tokens"):
        make_method("lamol", {}).check(facts)
