from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.data.bad_rows import SHOWN, BadRow, refusal
from everlearn.data.formats import read_rows
from everlearn.data.labels import Spellings
from everlearn.errors import DataError
from everlearn.files import read_jsonl, write_jsonl

SUPERNI = {
    "Contributors": ["someone"],
    "Definition": ["Copy the word. ", "Another wording."],
    "Positive Examples": [{"input": "p", "output": "P", "explanation": "so"}],
    "Negative Examples": [{"input": "n", "output": "wrong", "explanation": "no"}],
    "Instances": [
        {"id": "task1-a", "input": " a ", "output": ["A ", " Ä"]},
        {"id": "task1-b", "input": "b", "output": ["B"]},
        {"id": "task1-c", "input": "c", "output": []},
    ],
}


@pytest.fixture
def superni(tmp_path) -> str:
    path = tmp_path / "task1.json"
    path.write_text(json.dumps(SUPERNI, indent=1), encoding="utf-8")
    return str(path)


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_an_official_superni_file_gives_definition_and_all_references(superni):
    result = read_rows(superni, task="t")
    assert (result.format, result.total) == ("superni", 3)
    first = result.rows[0]
    assert (first.instruction, first.input, first.output) == ("Copy the word.", "a", "A")
    assert (first.id, first.references, first.query) == ("task1-a", ("Ä",), "Copy the word.\n\na")
    assert [(bad.line, bad.unit, bad.reason) for bad in result.bad] == [(3, "row", "empty output")]


def test_the_definition_of_a_superni_file_goes_before_the_recipes_instruction(tmp_path, superni):
    (first, _) = read_rows(superni, task="t", instruction="Mine.").rows
    assert first.instruction == "Copy the word."
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"Instances": SUPERNI["Instances"]}), encoding="utf-8")
    (first, _) = read_rows(str(bare), task="t", instruction="Mine.").rows
    assert first.instruction == "Mine."


def test_positive_examples_of_a_superni_file_serve_as_demonstrations(superni):
    (example,) = read_rows(superni, task="t", positive_examples=True, id_prefix="demonstrations").rows
    assert (example.instruction, example.input, example.output) == ("Copy the word.", "p", "P")
    assert example.id == "demonstrations-1"


def test_ids_are_the_datas_own_or_count_the_rows_and_are_unique(tmp_path):
    row = {"input": "x", "output": "y"}
    source = jsonl(tmp_path / "a.jsonl", {**row, "id": "own"}, row, {**row, "id": "own"}, {**row, "id": 7})
    assert [row.id for row in read_rows(source, task="t", id_prefix="train").rows] == ["own", "train-2", "own~3", "7"]


def test_ids_do_not_depend_on_the_name_of_the_file(tmp_path):
    row = {"input": "x", "output": "y"}
    one, two = jsonl(tmp_path / "one.jsonl", row, row), jsonl(tmp_path / "two.jsonl", row, row)
    assert read_rows(one, task="t").rows == read_rows(two, task="t").rows


def test_columns_are_mapped_and_others_keep_their_names(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"sentence": "x", "output": "y", "instruction": "Do.", "key": "k"})
    (row,) = read_rows(source, columns={"input": "sentence", "id": "key"}, task="t").rows
    assert (row.instruction, row.input, row.output, row.id) == ("Do.", "x", "y", "k")


def test_a_row_without_a_mapped_column_is_bad(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"s": "x", "output": "y"}, {"output": "y"})
    result = read_rows(source, columns={"input": "s"}, task="t")
    assert len(result.rows) == 1
    assert [str(bad) for bad in result.bad] == ["line 2: no column 's' for the input"]


def test_a_mapping_to_no_column_is_refused_with_the_nearest(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"sentence": "x", "label": "y"})
    with pytest.raises(DataError, match=r"no column 'sentense' for the input: did you mean 'sentence'\? The columns"):
        read_rows(source, columns={"input": "sentense", "output": "label"}, task="t")
    with pytest.raises(DataError, match="no column 'output' for the output"):
        read_rows(source, columns={"input": "sentence"}, task="t")


def test_a_column_that_is_mapped_is_not_also_read_under_its_own_name(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"instruction": "Say 3.", "answer": "3"})
    (row,) = read_rows(source, columns={"input": "instruction", "output": "answer"}, task="t").rows
    assert (row.instruction, row.input, row.output) == ("", "Say 3.", "3")


def test_columns_with_another_format_are_refused(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"input": "x", "output": "y"})
    with pytest.raises(DataError, match="columns are given, but format is alpaca"):
        read_rows(source, "alpaca", {"input": "x"}, task="t")


def test_an_unknown_shape_is_refused_with_the_columns_it_would_take(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"sentence": "x", "label": "y"})
    with pytest.raises(DataError, match=r"such as columns: \{input: sentence, output: label\}"):
        read_rows(source, task="t")


def test_rows_without_a_known_shape_are_looked_past_for_one(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"note": "made by hand"}, {"prompt": "x", "completion": "y"})
    result = read_rows(source, task="t")
    assert (result.format, [row.output for row in result.rows], len(result.bad)) == ("prompt_completion", ["y"], 1)


def test_the_format_can_be_overridden(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"full_prompt": "Do it.\n\nx", "input": "x", "output": "y"})
    assert read_rows(source, task="t").rows[0].instruction == "Do it."
    (row,) = read_rows(source, "columns", task="t", instruction="Mine.").rows
    assert (row.instruction, row.input) == ("Mine.", "x")


def test_bad_rows_keep_file_line_and_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "x", "output": "y"}\n[1]\n{"input": "x"}\n{"inp\n', encoding="utf-8")
    result = read_rows(str(path), task="t")
    assert result.total == 4
    assert [(bad.file, str(bad)) for bad in result.bad] == [
        (str(path), "line 2: not an object but '[1]'"),
        (str(path), "line 3: no output"),
        (str(path), "line 4: not valid JSON (Unterminated string starting at, column 2)"),
    ]


def test_an_output_outside_the_declared_labels_is_bad(tmp_path):
    source = jsonl(tmp_path / "a.jsonl", {"input": "x", "output": "yes"}, {"input": "x", "output": "maybe"})
    result = read_rows(source, task="t", labels=Spellings(("yes", "no"), True))
    assert [str(bad) for bad in result.bad] == ["line 2: output 'maybe' is none of the labels no, yes"]


def test_a_list_without_rows_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"a.json holds no rows"):
        read_rows(str(path), task="t")


def test_the_refusal_counts_all_and_names_the_first_few():
    bad = [BadRow("a.jsonl", line, "no output") for line in range(1, 8)] + [BadRow("b.json", 1, "empty", unit="row")]
    message = str(refusal(bad, 100))
    assert message.startswith("8 of 100 rows cannot be used: a.jsonl, line 1: no output; line 2: no output;")
    assert f"line {SHOWN}: no output; and 3 more. Mend them, or set stream.bad_rows to tolerant" in message
    assert "b.json, row 1: empty" in str(refusal(bad[-2:], 2))


def test_a_bad_row_can_be_written_whatever_it_held(tmp_path):
    import datetime

    held = {"a": "\ud83d", "b": b"\xff", "c": datetime.date(2024, 1, 1), "d": float("inf")}
    write_jsonl(tmp_path / "bad.jsonl", [BadRow("a", 1, "reason", held).to_json()])
    (written,) = read_jsonl(tmp_path / "bad.jsonl")
    assert written["row"] == {"a": "?", "b": "b'\\xff'", "c": "2024-01-01", "d": float("inf")}
