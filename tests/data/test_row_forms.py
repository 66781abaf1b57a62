"""The row forms that trainers document, key by key: what is kept, what is refused, and what is told as not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from everlearn.data.formats import read_rows

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
Q2, A2 = {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
FULL = [("user", "q"), ("assistant", "a")]

KEPT: dict[str, tuple[dict[str, Any], list[tuple[list[tuple[str, str]], str, str]], set[str]]] = {
    # name: row, its instances as (turns before, what is asked, answer), keys that are not read
    "alpaca": ({"instruction": "i", "input": "x", "output": "a"}, [([], "i\n\nx", "a")], set()),
    "alpaca of the hub": ({"instruction": "i", "input": "", "output": "a", "text": "all"}, [([], "i", "a")], {"text"}),
    "LLaMA-Factory alpaca": (
        {"instruction": "i", "input": "", "output": "a2", "system": "s", "history": [["q", "a"]]},
        [([("system", "s"), *FULL], "i", "a2")],
        set(),
    ),
    "alpaca without system and history": (
        {"instruction": "i", "output": "a", "system": "", "history": [], "images": [], "tools": "[]"},
        [([], "i", "a")],
        set(),
    ),
    "LLaMA-Factory preference": (
        {"instruction": "i", "input": "", "chosen": "a", "rejected": "b"},
        [([], "i", "a")],
        {"rejected"},
    ),
    "LLaMA-Factory KTO": ({"instruction": "i", "output": "a", "kto_tag": True}, [([], "i", "a")], set()),
    "sharegpt": (
        {"id": "1", "conversations": [HUMAN, GPT], "system": "s", "model": "m"},
        [([("system", "s")], "q", "a")],
        {"model"},
    ),
    "sharegpt preference": (
        {"conversations": [HUMAN, GPT, {"from": "human", "value": "q2"}], "chosen": {"from": "gpt", "value": "a2"},
         "rejected": {"from": "gpt", "value": "b"}},
        [(FULL, "q2", "a2")],
        {"rejected"},
    ),
    "openai": (
        {"messages": [{"role": "developer", "content": "s"}, {**Q, "name": "ann"}, A, Q2, A2]},
        [([("system", "s")], "q", "a"), ([("system", "s"), *FULL], "q2", "a2")],
        {"messages[].name"},
    ),
    "openai weights": ({"messages": [Q, {**A, "weight": 0}, Q2, {**A2, "weight": 1}]}, [(FULL, "q2", "a2")], set()),
    "axolotl train flags": (
        {"conversations": [{**HUMAN, "train": False}, {**GPT, "train": False}, HUMAN, {**GPT, "train": True}]},
        [(FULL, "q", "a")],
        set(),
    ),
    "axolotl flags that ask for the question": (
        {"messages": [{**Q, "training": True}, {**A, "train_detail": [{"begin_offset": 0}]}]},
        [([], "q", "a")],
        {"messages[].training", "messages[].train_detail"},
    ),
    "reasoning beside the answer": (
        {"messages": [Q, {**A, "reasoning_content": "hm"}]},
        [([], "q", "a")],
        {"messages[].reasoning_content"},
    ),
    "parts of text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q", "cache": 1}]}, A]},
        [([], "q", "a")],
        {"messages[].content[].cache"},
    ),
    "anthropic": ({"system": "s", "messages": [Q, A]}, [([("system", "s")], "q", "a")], set()),
    "gemini": (
        {"systemInstruction": {"parts": [{"text": "s"}]},
         "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
        [([("system", "s")], "q", "a")],
        set(),
    ),
    "cohere": ({"messages": [{"role": "User", "content": "q"}, {"role": "Chatbot", "content": "a"}]},
               [([], "q", "a")], set()),
    "wildchat": ({"conversation": [Q, A], "language": "English"}, [([], "q", "a")], {"language"}),
    "no_robots": (
        {"prompt": "q", "prompt_id": "1", "messages": [Q, A], "category": "Chat"},
        [([], "q", "a")],
        {"prompt", "prompt_id", "category"},
    ),
    "trl prompt-completion": ({"prompt": "q", "completion": " a"}, [([], "q", " a")], set()),
    "trl conversational": (
        {"prompt": [Q, A, Q2], "completion": [A2], "chat_template_kwargs": {"enable_thinking": False}},
        [(FULL, "q2", "a2")],
        {"chat_template_kwargs"},
    ),
    "trl completion of several answers": ({"prompt": [Q], "completion": [A, Q2, A2]},
                                          [([], "q", "a"), (FULL, "q2", "a2")], set()),
    "trl preference": ({"prompt": "q", "chosen": "a", "rejected": "b"}, [([], "q", "a")], {"rejected"}),
    "trl conversational preference": (
        {"prompt": [Q], "chosen": [A], "rejected": [A2], "score_chosen": 7.0},
        [([], "q", "a")],
        {"rejected", "score_chosen"},
    ),
    "trl preference with its prompt in both": (
        {"chosen": [Q, A, Q2, A2], "rejected": [Q, A, Q2, A]}, [(FULL, "q2", "a2")], {"rejected"},
    ),
    "ultrafeedback": ({"prompt": "q", "chosen": [Q, A], "rejected": [Q, A2]}, [([], "q", "a")], {"rejected"}),
    "trl unpaired preference": ({"prompt": "q", "completion": "a", "label": True}, [([], "q", "a")], set()),
    "prompt with a system message": (
        {"system": "s", "prompt": "q", "response": "a"}, [([("system", "s")], "q", "a")], set(),
    ),
    "ssr": ({"full_prompt": "i\n\nx", "input": "x", "output": "a", "system": "s"}, [([], "i\n\nx", "a")], {"system"}),
    "references": ({"input": "x", "output": ["a", "b"]}, [([], "x", "a")], set()),
    "squad answers": (
        {"input": "x", "output": {"text": ["a", "b"], "answer_start": [3, 3]}},
        [([], "x", "a")],
        {"output.answer_start"},
    ),
    "squad's own answers": (
        {"input": "x", "output": [{"text": "a", "answer_start": 3}]}, [([], "x", "a")], {"output[].answer_start"},
    ),
    "all keys of a typed table": (
        {"messages": [{**Q, "tool_calls": None, "weight": None}, {**A, "tool_calls": [], "name": ""}], "tools": None},
        [([], "q", "a")],
        set(),
    ),
    "bookkeeping": ({"input": "x", "output": "a", "index": 0, "meta": {"url": "u"}, "none": {"a": None}},
                    [([], "x", "a")], {"index", "meta"}),
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tools of a conversation": ({"messages": [Q, A], "tools": [{"name": "f"}]}, "it holds 'tools': only text"),
    "tool calls": ({"messages": [Q, {**A, "tool_calls": [{"id": "1"}]}]}, "turn 2 holds 'tool_calls'"),
    "an old function call": ({"messages": [Q, {**A, "content": None, "function_call": {"name": "f"}}]}, "'function_"),
    "a tool's turn": ({"messages": [Q, A, {"role": "tool", "content": "3"}]}, "turn 3 has the role 'tool': calls"),
    "sharegpt observation": ({"conversations": [HUMAN, {"from": "observation", "value": "3"}]}, "calls of tools"),
    "sharegpt function call": ({"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]}, "calls of tools"),
    "images": ({"instruction": "i", "output": "a", "images": ["x.png"]}, "it holds 'images'"),
    "llava": ({"image": "x.png", "conversations": [HUMAN, GPT]}, "it holds 'image'"),
    "an image among the parts": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, A]},
        "else than text",
    ),
    "gemini's call": ({"contents": [{"role": "user", "parts": [{"functionCall": {}}]}]}, "something else than text"),
    "no learnt answer": ({"messages": [Q, {**A, "weight": 0}]}, r"no answer of the assistant that is to be learnt"),
    "half a weight": ({"messages": [Q, {**A, "weight": 0.5}]}, r"the weight 0.5: an answer is learnt \(1\) or not"),
    "KTO's bad answer": ({"instruction": "i", "output": "a", "kto_tag": False}, r"unwanted \('kto_tag' is false\)"),
    "trl's bad answer": ({"prompt": "q", "completion": "a", "label": False}, r"unwanted \('label' is false\)"),
    "a bad conversation": ({"conversations": [HUMAN, GPT], "kto_tag": "false"}, "unwanted"),
    "an unanswerable question": ({"input": "x", "output": {"text": [], "answer_start": []}}, "empty output"),
    "a history of other things": ({"instruction": "i", "output": "a", "history": [["q"]]}, "item 1 of the history"),
    "a number beyond all": ({"input": "x", "output": float("inf")}, "'output' is a number too large to be read"),
    "a prompt alone": ({"prompt": "q", "completion": None}, "no output"),
}


def read(tmp_path: Path, *rows: dict[str, Any], **how: Any):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_rows(str(path), task="t", **how)


@pytest.mark.parametrize("name", KEPT)
def test_what_a_row_form_means_is_kept_and_the_rest_is_told(name: str, tmp_path: Path) -> None:
    row, instances, unread = KEPT[name]
    result = read(tmp_path, row)
    assert not result.bad
    told = [([(turn.role, turn.content) for turn in one.history], one.query, one.output) for one in result.rows]
    assert told == instances
    assert result.unread == dict.fromkeys(unread, 1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_text_can_mean_is_a_row_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    row, reason = REFUSED[name]
    result = read(tmp_path, row)
    assert not result.rows
    (bad,) = result.bad
    assert bad.reason
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)


def test_keys_are_counted_by_the_rows_that_hold_something_under_them(tmp_path: Path) -> None:
    row = {"input": "x", "output": "a"}
    result = read(tmp_path, {**row, "note": "n"}, {**row, "note": ""}, {**row, "note": None}, {**row, "note": 0})
    assert result.unread == {"note": 2}


def test_a_mapped_id_is_read_and_another_is_told(tmp_path: Path) -> None:
    row = {"input": "x", "output": "a", "id": 1, "key": 2}
    assert read(tmp_path, row, columns={"id": "key"}).unread == {"id": 1}
    assert read(tmp_path, row).unread == {"key": 1}


def test_ids_given_twice_and_questions_without_an_answer_are_told(tmp_path: Path) -> None:
    rows = [{"id": "same", "messages": [Q, A, Q2]}] * 2
    result = read(tmp_path, *rows, {"id": "other", "messages": [Q, {**A, "weight": 0}, Q2, A2]})
    assert [row.id for row in result.rows] == ["same", "same~2", "other.2"]
    assert sorted(result.notes) == [
        "rows that end with a question that has no answer, which is left out: 2.",
        "rows that have an id that is given twice, and are told apart by their number behind a ~: 1.",
        "rows that hold answers that are marked as not to be learnt and are shown as history only: 1.",
    ]


def test_columns_are_joined_with_their_names_and_empty_ones_left_out(tmp_path: Path) -> None:
    columns = {"input": ["premise", "hypothesis"], "output": "label"}
    rows = [{"premise": "p", "hypothesis": "h", "label": "yes"}, {"premise": "p", "hypothesis": "", "label": "no"}]
    result = read(tmp_path, *rows, columns=columns)
    assert [row.input for row in result.rows] == ["premise: p\nhypothesis: h", "premise: p"]
    assert not result.unread


def test_system_and_history_may_have_columns_of_their_own(tmp_path: Path) -> None:
    row = {"q": "q2", "a": "a2", "orca": "s", "before": [["q", "a"]]}
    columns = {"input": "q", "output": "a", "system": "orca", "history": "before"}
    (instance,) = read(tmp_path, row, columns=columns).rows
    assert [turn.role for turn in instance.history] == ["system", "user", "assistant"]
    (bad,) = read(tmp_path, {**row, "before": "q a"}, columns=columns).bad
    assert bad.reason == "'before' is of type str, not a list of earlier turns"


def test_a_row_nested_too_deeply_is_one_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    deep = "[" * 900 + "1" + "]" * 900
    path.write_text(f'{{"input": "x", "output": "a"}}\n{{"input": "x", "output": "a", "deep": {deep}}}\n')
    result = read_rows(str(path), task="t")
    assert (len(result.rows), len(result.rows) + len(result.bad)) in ((1, 2), (2, 2))
    assert all("nested too deeply" in bad.reason for bad in result.bad)
    json.dumps([bad.to_json() for bad in result.bad])


def test_one_key_twice_in_an_object_is_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "x", "output": "a", "output": "b"}\n{"input": "x", "output": "a"}\n')
    result = read_rows(str(path), task="t")
    assert [bad.reason for bad in result.bad] == [
        "JSON that cannot be read (the key 'output' stands twice in one object)"
    ]
