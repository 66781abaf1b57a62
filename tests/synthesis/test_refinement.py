"""Refinement: prompts, what is dropped, and which rows are taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from everlearn.data.instance import Instance, Task, Turn
from everlearn.data.prompts import AlpacaTemplate, Llama2Template, VanillaTemplate, get_template
from everlearn.errors import RecipeError
from everlearn.recipe import TrainingConfig
from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.refinement import (
    Answering,
    answer,
    as_instances,
    fault_of,
    label_shares,
    published_frame,
    take,
)
from tests.data.byte_tokenizer import CHATML, make_byte_tokenizer, read
from tests.synthesis.fakes import FakeGenerator

TOKENIZER = make_byte_tokenizer()
ANSWERING = Answering(
    VanillaTemplate(),
    TOKENIZER,  # type: ignore[arg-type]
    TrainingConfig(),
    context=200,
    max_length=200,
    max_new_tokens=20,
)
ROW: dict[str, object] = {"inputs": "Define.\n\nfoo", "instruction": "Define.", "input": "foo", "outputs": "old"}


def answered(target: str, reason: str = "eos") -> dict[str, object]:
    return {**ROW, "targets": target, "finish_reason": reason}


def test_the_published_texts_are_the_golden_ones(golden_dir: Path) -> None:
    path = golden_dir / "ssr" / "refinement_prompts_official.json"
    golden = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert len(golden) == 2
    for case in golden:
        assert case["inputs"].join(published_frame(case["template"])) == case["text"]


def test_a_template_whose_published_text_is_unknown_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"published is known for .* not for alpaca: use training"):
        published_frame("alpaca")


@pytest.mark.parametrize("template", [VanillaTemplate(), AlpacaTemplate(), Llama2Template()])
def test_inputs_are_asked_exactly_as_in_training(template: VanillaTemplate | AlpacaTemplate | Llama2Template) -> None:
    answering = replace(ANSWERING, template=template)
    training = template.prompt_ids(Instance("Define.", "foo", "gold", "t"), TOKENIZER)  # type: ignore[arg-type]
    assert answering.prompt_ids(ROW) == training


def test_the_published_llama2_prompt_has_two_bos() -> None:
    answering = replace(ANSWERING, template=Llama2Template(), prompt="published")
    ids = answering.prompt_ids(ROW)
    assert ids[:2] == [TOKENIZER.bos_token_id] * 2
    assert read(TOKENIZER, ids[2:]).startswith(" [INST] <<SYS>>")


def test_answers_are_greedy_and_stripped() -> None:
    generator = FakeGenerator(TOKENIZER, lambda text, stream: "  bar \n")
    (row,) = answer([ROW], generator, ANSWERING)
    assert (row["targets"], row["finish_reason"], row["outputs"]) == ("bar", "eos", "old")
    prompts, sampling = generator.calls[0]
    assert prompts == ["<s>Define.\n\nfoo"]
    assert sampling.temperature == 0
    assert (sampling.repetition_penalty, sampling.max_length, sampling.max_new_tokens) == (1.0, 200, 20)


def test_an_answer_ends_where_the_chat_template_ends_a_turn() -> None:
    tokenizer = make_byte_tokenizer(chat_template=CHATML, controls=("<|im_start|>", "<|im_end|>"))
    generator = FakeGenerator(tokenizer, lambda text, stream: "bar")
    answer([ROW], generator, replace(ANSWERING, template=get_template("chat", tokenizer), tokenizer=tokenizer))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generator.calls[0][1].end_ids == (end, tokenizer.eos_token_id)


@pytest.mark.parametrize("cut", [10, 3000])
def test_prompts_are_cut_where_training_cuts_them(cut: int) -> None:
    answering = replace(ANSWERING, training=TrainingConfig(max_prompt_tokens=cut), context=4000)
    row = {**ROW, "input": "f" * 3500}
    assert len(answering.prompt_ids(row)) == cut


def test_room_is_left_for_what_training_keeps_of_prompt_and_answer() -> None:
    cuts = TrainingConfig(max_prompt_tokens=3000, max_target_tokens=900)
    answering = replace(ANSWERING, training=cuts, context=3900)
    row = {**ROW, "input": "f" * 3500}
    assert answering.has_room(row, "y" * 1000)
    assert not replace(answering, context=3899).has_room(row, "y" * 1000)


def test_a_prompt_without_room_is_not_asked() -> None:
    generator = FakeGenerator(TOKENIZER, lambda text, stream: "bar")
    rows = answer([{**ROW, "input": "f" * 300}, ROW], generator, ANSWERING)
    assert [row["finish_reason"] for row in rows] == ["no_room", "eos"]
    assert len(generator.calls[0][0]) == 1
    assert fault_of(rows[0], ANSWERING, must_end=False) == "input_too_long"


def test_a_prompt_that_leaves_one_token_for_its_answer_is_asked() -> None:
    length = len(ANSWERING.prompt_ids(ROW))
    for most, reason in ((length, "no_room"), (length + 1, "eos")):
        generator = FakeGenerator(TOKENIZER, lambda text, stream: "b")
        (row,) = answer([ROW], generator, replace(ANSWERING, max_length=most))
        assert row["finish_reason"] == reason


@pytest.mark.parametrize(
    ("row", "published", "improved"),
    [
        (answered("yes"), None, None),
        (answered(""), "empty_output", "empty_output"),
        (answered("yes and", "length"), None, "run_on"),
        (answered("maybe"), None, "unknown_label"),
        (answered("y" * 190), "output_too_long", "unknown_label"),
    ],
)
def test_what_is_dropped_depends_on_the_preset(
    row: dict[str, object], published: str | None, improved: str | None
) -> None:
    assert fault_of(row, ANSWERING, must_end=False) == published
    assert fault_of(row, ANSWERING, must_end=True, labels=("yes", "no")) == improved


@pytest.mark.parametrize(("target", "fault"), [("bar", None), ("Foo.", "copy_of_input"), ("?", "no_letter")])
def test_an_answer_like_no_demonstrations_is_dropped_where_something_is_expected(
    target: str, fault: str | None
) -> None:
    expected = Expected([Instance("Define.", "cat", "animal", "t")])
    assert fault_of(answered(target), ANSWERING, must_end=True, expected=expected) == fault
    assert fault_of(answered(target), ANSWERING, must_end=False) is None


def test_a_kept_answer_fits_the_context_with_its_end_token() -> None:
    prompt = len("<s>Define.\n\nfoo") - 2
    assert fault_of(answered("y" * (200 - prompt - 1)), ANSWERING, must_end=False) is None
    assert fault_of(answered("y" * (200 - prompt)), ANSWERING, must_end=False) == "output_too_long"


def test_labels_are_taken_in_their_real_proportion_in_order() -> None:
    answers = ["a", "a", "a", "a", "b", "a", "b", "b"]
    assert take(answers, 4, {"a": 50, "b": 50}) == [0, 1, 4, 6]
    assert take(answers, 4, {"a": 75, "b": 25}) == [0, 1, 2, 4]


def test_missing_labels_are_made_up_for_by_the_others() -> None:
    assert take(["a", "a", "a", "b"], 4, {"a": 1, "b": 1}) == [0, 1, 2, 3]
    assert take(["a", "a", "a", "b"], 3, {"a": 1, "b": 2}) == [0, 1, 3]
    assert take(["a", "b"], 5, {"a": 1, "b": 1}) == [0, 1]


def test_without_labels_the_first_rows_are_taken() -> None:
    assert take(["p", "q", "r"], 2, {}) == [0, 1]


def test_shares_are_those_of_the_training_rows_or_equal() -> None:
    rows = tuple(Instance("d", str(at), "a" if at < 3 else "b", "t") for at in range(4))
    assert label_shares(Task("t", rows, (), labels=("a", "b", "c"))) == {"a": 3, "b": 1, "c": 0}
    assert label_shares(Task("t", (), (), labels=("a", "b"))) == {"a": 1, "b": 1}
    assert label_shares(Task("t", rows, ())) == {}


def test_rows_become_synthetic_instances() -> None:
    system = (Turn("system", "Be brief."),)
    (refined,) = as_instances([answered("new")], "t", system)
    assert refined == Instance("Define.", "foo", "new", "t", "synthetic", "t-synthetic-0", history=system)
    (raw,) = as_instances([ROW], "t", ())
    assert raw.output == "old"


def test_an_input_that_names_control_tokens_is_text_in_a_published_prompt() -> None:
    answering = replace(ANSWERING, template=Llama2Template(), prompt="published")
    ids = answering.prompt_ids({**ROW, "inputs": "a <s> b </s> c"})
    assert ids.count(TOKENIZER.bos_token_id) == 2
    assert ids.count(TOKENIZER.eos_token_id) == 0
