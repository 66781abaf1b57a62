from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.data.bad_rows import RowFault
from everlearn.data.column_names import guess_columns
from everlearn.data.instance import Instance, Turn
from everlearn.data.row import Row
from everlearn.data.shapes import PARSERS, detect_shape
from everlearn.data.turns import Frame

FRAME = Frame("task", "", "r1")


def parse(shape: str, row: dict[str, object], frame: Frame = FRAME) -> list[Instance]:
    return PARSERS[shape](Row(row), frame)


def only(shape: str, row: dict[str, object], frame: Frame = FRAME) -> Instance:
    (instance,) = parse(shape, row, frame)
    return instance


EXAMPLES = {
    "superni": {"full_prompt": "Do it.\n\nx", "input": "x", "output": "y"},
    "alpaca": {"instruction": "Do it.", "input": "x", "output": "y"},
    "sharegpt": {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
    "messages": {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    "prompt_completion": {"prompt": "x", "completion": "y"},
    "columns": {"input": "x", "output": "y"},
}


@pytest.mark.parametrize("shape", EXAMPLES)
def test_each_shape_is_detected_and_parsed(shape):
    assert detect_shape(EXAMPLES[shape]) == shape
    instance = only(shape, EXAMPLES[shape])
    assert (instance.input, instance.output, instance.task, instance.id) == ("x", "y", "task", "r1")
    assert instance.instruction == ("Do it." if shape in ("superni", "alpaca") else "")


def test_an_unknown_shape_is_not_guessed():
    assert detect_shape({"text": "a", "label": "b"}) is None


def test_columns_are_guessed_by_their_usual_names():
    assert guess_columns(dict.fromkeys(["Label", "sentence"], "x")) == {"input": "sentence", "output": "Label"}
    dolly = {"instruction": "instruction", "input": "context", "output": "response"}
    assert guess_columns(dict.fromkeys(["instruction", "context", "response", "category"], "x")) == dolly
    assert guess_columns(dict.fromkeys(["Instruction", "Answer"], "x")) == {
        "instruction": "Instruction",
        "output": "Answer",
    }
    assert guess_columns(dict.fromkeys(["x", "y"], "x")) is None
    assert guess_columns(dict.fromkeys(["instruction", "y"], "x")) is None


def test_the_instruction_is_what_stands_before_the_input_even_with_blank_lines_in_both():
    row = {"full_prompt": "Read.\n\nThen answer.\n\nfirst\n\nsecond", "input": "first\n\nsecond", "output": "y"}
    instance = only("superni", row)
    assert instance.instruction == "Read.\n\nThen answer."
    assert instance.query == row["full_prompt"]


def test_a_short_input_is_found_at_the_end_of_the_prompt():
    instance = only("superni", {"full_prompt": "a or b?\n\na", "input": "a", "output": "y"})
    assert (instance.instruction, instance.input) == ("a or b?", "a")


def test_a_cue_behind_the_input_is_kept():
    instance = only("superni", {"full_prompt": "Do it.\nx\nAnswer:", "input": "x", "output": "y"})
    assert (instance.instruction, instance.input) == ("Do it.", "x\nAnswer:")


@pytest.mark.parametrize("row", [{}, {"input": "elsewhere"}, {"input": ""}])
def test_without_its_input_a_full_prompt_is_split_at_the_first_blank_line(row):
    instance = only("superni", {"full_prompt": "Do it.\n\nx\n\nz", "output": "y", **row})
    assert (instance.instruction, instance.input) == ("Do it.", "x\n\nz")


def test_the_recipes_definition_fills_in_only_where_a_row_has_none():
    frame = Frame("task", "Defined.", "r1")
    assert only("columns", EXAMPLES["columns"], frame).instruction == "Defined."
    assert only("alpaca", EXAMPLES["alpaca"], frame).instruction == "Do it."
    assert only("messages", EXAMPLES["messages"], frame).query == "Defined.\n\nx"


def test_further_references_and_numbers_are_kept_as_texts():
    instance = only("columns", {"input": 3, "output": ["y", "z", 4]})
    assert (instance.input, instance.output, instance.references) == ("3", "y", ("z", "4"))
    assert only("columns", {"input": "x", "output": True}).output == "True"
    assert only("columns", {"input": "x", "output": 0}).output == "0"


def test_texts_are_taken_verbatim():
    instance = only("prompt_completion", {"prompt": "Review: good. ", "completion": " positive"})
    assert (instance.input, instance.output) == ("Review: good. ", " positive")


def test_each_answer_of_a_conversation_is_an_instance_with_the_turns_before_it():
    row = {
        "system": "Be kind.",
        "conversations": [
            {"from": "human", "value": "q1"},
            {"from": "gpt", "value": "a1"},
            {"from": "human", "value": "q2"},
            {"from": "gpt", "value": "a2"},
            {"from": "human", "value": "never answered"},
        ],
    }
    first, second = parse("sharegpt", row)
    assert (first.id, first.input, first.output) == ("r1", "q1", "a1")
    assert first.history == (Turn("system", "Be kind."),)
    assert (second.id, second.input, second.output) == ("r1.2", "q2", "a2")
    assert second.history == (Turn("system", "Be kind."), Turn("user", "q1"), Turn("assistant", "a1"))


def test_message_content_may_be_a_list_of_text_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "y"}]}
    assert only("messages", row).input == "ab"


def test_a_conversational_completion_is_the_only_answer():
    row = {
        "prompt": [
            {"role": "user", "content": "q1"},
            {"role": "assistant", "content": "a1"},
            {"role": "user", "content": "q2"},
        ],
        "completion": [{"role": "assistant", "content": "a2"}],
    }
    instance = only("prompt_completion", row)
    assert (instance.input, instance.output, len(instance.history)) == ("q2", "a2", 2)
    mixed = only("prompt_completion", {"prompt": row["prompt"], "response": "a2"})
    assert (mixed.input, mixed.output) == ("q2", "a2")


USER, ANSWER = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("shape", "row", "reason"),
    [
        ("columns", {"input": "x"}, "no output"),
        ("columns", {"input": "x", "output": None}, "no output"),
        ("columns", {"input": "x", "output": float("nan")}, "empty output"),
        ("columns", {"input": "x", "output": " \n"}, "empty output"),
        ("columns", {"input": "x", "output": []}, "empty output"),
        ("columns", {"input": " ", "output": "y"}, "neither instruction nor input"),
        ("columns", {"input": ["x"], "output": "y"}, "'input' is a list, not text"),
        ("columns", {"input": "x", "output": {"a": 1}}, "'output' is an object, not text"),
        ("columns", {"input": "x", "output": ["y", {}]}, "'output' is an object, not text"),
        ("columns", {"input": b"x", "output": "y"}, "'input' is binary data, not text"),
        ("columns", {"input": "x", "output": "\ud83d"}, "'output' holds half a surrogate pair"),
        ("prompt_completion", {"prompt": "x"}, r"no output \(no 'response'\)"),
        ("messages", {"text": "x"}, "no conversation"),
        ("messages", {"messages": "x"}, "'messages' is of type str, not a list of turns"),
        ("messages", {"messages": []}, "no output"),
        ("messages", {"messages": [USER]}, "no output"),
        ("messages", {"messages": ["x"]}, "turn 1 is of type str, not an object"),
        ("messages", {"messages": [USER, {"role": "tool", "content": "x"}]}, "turn 2 has the role 'tool'"),
        ("messages", {"messages": [USER, {"role": [], "content": "x"}]}, r"turn 2 has the role \[\]"),
        ("messages", {"messages": [ANSWER, USER, ANSWER]}, "turn 1 is an answer without a question"),
        ("messages", {"messages": [USER, USER, ANSWER]}, "turn 2 is the second question in a row"),
        ("messages", {"messages": [USER, {**ANSWER, "content": None}]}, r"empty output \(turn 2\)"),
        (
            "messages",
            {"messages": [USER, ANSWER, {"role": "system", "content": "s"}]},
            "turn 3 is a system message behind the beginning",
        ),
        ("messages", {"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]}, "something else than text"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(shape, row, reason):
    with pytest.raises(RowFault, match=reason):
        parse(shape, row)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "type", "text", "user", "input", "output", "prompt", "messages"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
KEYS = "id input output instruction full_prompt conversations messages system prompt completion response".split()


@settings(max_examples=400, deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS), json_values), shape=st.sampled_from(sorted(PARSERS)))
def test_any_row_gives_sound_instances_or_a_reason(row, shape):
    detect_shape(row)
    try:
        instances = parse(shape, row)
    except RowFault as fault:
        instances = []
        reason = str(fault)
    else:
        reason = ""
    assert bool(instances) != bool(reason)
    for instance in instances:
        assert instance.output.strip()
        assert instance.query.strip()
        json.dumps(instance.to_json(), ensure_ascii=False).encode()


plain = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())


@settings(max_examples=100, deadline=None)
@given(instruction=plain, given_input=plain, output=plain)
def test_shapes_written_from_an_instance_are_read_back(instruction, given_input, output):
    wanted = Instance(instruction.rstrip(), given_input, output, "task", id="r1")
    if not wanted.instruction:
        return
    full = {"full_prompt": wanted.query, "input": given_input, "output": output}
    assert only("superni", full) == wanted
    alpaca = {"instruction": wanted.instruction, "input": given_input, "output": output}
    assert only("alpaca", alpaca) == wanted


CORPUS_ROW = {"source_text": "Guten Tag.", "target_text": "Good day.", "source_lang": "de", "target_lang": "en"}
CHAIN_ROW = {
    "instruction": "published wording",
    "input": "Guten Tag.",
    "source_lang": "German",
    "target_lang": "English",
    "target_text": "Good day.",
    "output": "<think>I look.</think>\n\n<answer>Good day.</answer>",
}


@pytest.mark.parametrize("row", [CORPUS_ROW, CHAIN_ROW])
def test_a_translation_is_asked_by_its_languages(row: dict[str, object]) -> None:
    assert detect_shape(row) == "translation"
    instance = only("translation", row)
    assert instance.instruction == "Please translate the following German Source sentence into English."
    assert (instance.input, instance.output) == ("Guten Tag.", "Good day.")
    assert instance.walk == ("I look." if "output" in row else "")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"target_text": " "}, "no reference"),
        ({"source_text": ""}, "no source"),
        ({"target_lang": None}, "no language under 'target_lang'"),
        ({"source_lang": "dee"}, "source_lang: the language code 'dee' is not known, did you mean 'de'"),
    ],
)
def test_a_translation_that_lacks_something_is_refused(changes: dict[str, object], fault: str) -> None:
    with pytest.raises(RowFault, match=fault):
        parse("translation", {**CORPUS_ROW, **changes})


def test_a_chain_with_wrong_tags_keeps_its_answer_and_says_so() -> None:
    row = Row({**CHAIN_ROW, "output": "<think>I look. <answer>Good day.</answer>", "target_text": ""})
    (instance,) = PARSERS["translation"](row, FRAME)
    assert (instance.output, instance.walk) == ("Good day.", "")
    assert any("their walk is left out" in remark for remark in row.remarks)


def test_what_is_thought_may_stand_under_walk() -> None:
    assert only("alpaca", {"instruction": "Do it.", "output": "y", "walk": "so"}).walk == "so"
