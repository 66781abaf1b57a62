from __future__ import annotations

import gzip
import json
import os
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from everlearn.cli.main import main
from everlearn.data.stream import load_stream
from everlearn.errors import DataError
from everlearn.recipe import MethodConfig, Recipe, Section, TaskConfig, load_recipe
from everlearn.runs.recipe_writer import left_out_of, write_recipe


def rows_of(name: str, first: int, count: int, keys: tuple[str, str] = ("input", "output")) -> str:
    given, output = keys
    rows = ({given: f"{name} {at}", output: f"answer {at}"} for at in range(first, first + count))
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path) -> Path:
    data = tmp_path / "my data"
    data.mkdir()
    (data / "qa.train.jsonl.gz").write_bytes(gzip.compress(rows_of("qa", 0, 30).encode()))
    (data / "qa.eval.jsonl.gz").write_bytes(gzip.compress(rows_of("qa", 30, 5).encode()))
    (data / "qa.extra.jsonl.gz").write_bytes(gzip.compress(rows_of("qa", 40, 4).encode()))
    (data / "mood_train.jsonl").write_text(rows_of("mood", 0, 30, ("sentence", "label")), encoding="utf-8")
    (data / "mood_dev.jsonl").write_text(rows_of("mood", 30, 5, ("sentence", "label")), encoding="utf-8")
    (data / "mood_test.jsonl").write_text(rows_of("mood", 50, 5, ("sentence", "label")), encoding="utf-8")
    (data / "a title! (2).jsonl").write_text(rows_of("title", 0, 30), encoding="utf-8")
    (data / "orphan.test.jsonl").write_text(rows_of("orphan", 0, 5), encoding="utf-8")
    (data / "labels.json").write_text('{"mood": ["good", "bad"]}', encoding="utf-8")
    (data / "notes.md").write_text("Not data.", encoding="utf-8")
    return data


def test_the_recipe_loads_and_so_does_its_stream(folder, tmp_path):
    out = tmp_path / "recipes" / "recipe.yaml"
    text = write_recipe(folder, out)
    assert out.read_text(encoding="utf-8") == text
    recipe = load_recipe(out)
    assert recipe.name == "my-data"
    stream = load_stream(recipe.stream, seed=1)
    assert stream.names == ["a-title-2", "mood", "qa"]
    assert [len(task.train) for task in stream] == [27, 30, 30]
    assert [len(task.evaluation) for task in stream] == [3, 5, 5]
    assert stream["mood"].evaluation[0].input == "mood 50"
    assert [row.input for row in stream["qa"].demonstrations] == ["qa 40", "qa 41", "qa 42", "qa 43"]


def test_paths_are_relative_to_the_recipe(folder, tmp_path):
    text = write_recipe(folder, tmp_path / "recipes" / "recipe.yaml")
    assert "train: ../my data/qa.train.jsonl.gz\n" in text
    assert str(tmp_path) not in text


def test_files_that_are_no_tasks_are_named_with_the_reason(folder, tmp_path):
    head = write_recipe(folder, tmp_path / "recipe.yaml").partition("\nname:")[0]
    assert "#   labels.json: no rows of a known format (keys: mood); if they are rows of a task, add it" in head
    assert "#   mood_dev.jsonl: task mood takes mood_test.jsonl for that part\n" in head
    assert "#   orphan.test.jsonl: task orphan has no training rows\n" in head
    assert "notes.md" not in head


def test_init_names_what_it_left_out_and_a_command_that_can_be_pasted(folder, capsys):
    assert main(["init", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "Left out orphan.test.jsonl: task orphan has no training rows\n" in told
    pasted = shlex.split(told.partition("then: everlearn ")[2])
    assert pasted == ["run", str(folder / "recipe.yaml")]


def test_columns_that_a_guessed_mapping_does_not_use_are_named(tmp_path):
    row = json.dumps({"id": 1, "question": "How many?", "context": "Two.", "answer": "2", "title": "Count"})
    (tmp_path / "squad.jsonl").write_text(row, encoding="utf-8")
    text = write_recipe(tmp_path, tmp_path / "recipe.yaml")
    assert "columns: {input: [question, context], output: answer}\n" in text
    assert left_out_of(text) == ["of squad.jsonl: the columns title"]


def test_keys_that_are_not_read_are_named_for_every_format(tmp_path):
    turns = [{"role": "user", "content": "q", "name": "ann"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns, "topic": "t"}), encoding="utf-8")
    row = {"instruction": "i", "input": "", "output": "a", "system": "s", "text": "all"}
    (tmp_path / "alpaca.json").write_text(json.dumps([row]), encoding="utf-8")
    left_out = left_out_of(write_recipe(tmp_path, tmp_path / "recipe.yaml"))
    assert [line.partition(": ")[0] for line in left_out] == ["of alpaca.json", "of chat.jsonl"]
    assert left_out[0].endswith("the columns text")
    assert sorted(left_out[1].partition("columns ")[2].split(", ")) == ["messages[].name", "topic"]


def test_a_file_that_cannot_be_read_is_left_out_for_its_own_reason(tmp_path, monkeypatch):
    (tmp_path / "good.jsonl").write_text(rows_of("good", 0, 30), encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text("nonsense\n{", encoding="utf-8")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 100)[:20])
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    (tmp_path / "numbers.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "d.json").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    told = dict(line.split(": ", 1) for line in left_out_of(write_recipe(tmp_path, tmp_path / "recipe.yaml")))
    assert told["broken.jsonl"].startswith("no row can be read (line 1: not valid JSON")
    assert "damaged gzip file" in told["cut.jsonl.gz"]
    assert told["empty.json"] == "it holds no rows"
    assert told["numbers.json"] == "its rows are no objects with keys (the first is '1')"
    assert "is a named pipe" in told["pipe.jsonl"]
    assert told["d.json"].startswith("it is a folder")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"good.jsonl: .* cannot be read: access is denied"):
        write_recipe(tmp_path, tmp_path / "other.yaml")


def test_files_whose_names_differ_in_what_no_task_name_can_hold_are_tasks_of_their_own(tmp_path):
    for name in ("груша", "яблоко", "a (1)", "a [1]", "B", "b"):
        (tmp_path / f"{name}.jsonl").write_text(rows_of(name, 0, 30), encoding="utf-8")
    text = write_recipe(tmp_path, tmp_path / "recipe.yaml")
    assert "left out" not in text
    stream = load_stream(load_recipe(tmp_path / "recipe.yaml").stream, seed=1)
    firsts = {task.name: task.train[0].input.rpartition(" ")[0] for task in stream}
    assert firsts == {"B": "B", "a-1": "a (1)", "a-1-2": "a [1]", "b-2": "b", "task": "груша", "task-2": "яблоко"}


def keys_of(section: type[BaseModel]) -> list[tuple[str, str]]:
    keys = []
    for key, info in section.model_fields.items():
        keys.append((info.alias or key, info.description or ""))
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Section):
            keys += keys_of(type(default))
    return keys


def test_every_key_stands_there_with_its_meaning_and_default(folder, tmp_path):
    text = write_recipe(folder, tmp_path / "recipe.yaml")
    flat = " ".join(text.replace("#", " ").split())
    for key, meaning in [*keys_of(Recipe), *keys_of(TaskConfig)]:
        assert f"{key}:" in text
        assert " ".join(meaning.split()) in flat
    assert "Default: 0.0002." in flat


def test_all_values_but_the_folders_own_are_the_defaults(folder, tmp_path):
    out = tmp_path / "recipe.yaml"
    write_recipe(folder, out)
    made, default = load_recipe(out).model_dump(), Recipe(method=MethodConfig()).model_dump()
    for own in ("name", "stream"):
        made.pop(own), default.pop(own)
    assert made == default


def test_lone_parts_are_a_task_named_after_the_folder(tmp_path):
    data = tmp_path / "weather"
    data.mkdir()
    (data / "train.jsonl").write_text(rows_of("w", 0, 30), encoding="utf-8")
    (data / "valid.jsonl").write_text(rows_of("w", 30, 5), encoding="utf-8")
    write_recipe(data, data / "recipe.yaml")
    (task,) = load_stream(load_recipe(data / "recipe.yaml").stream, seed=1)
    assert (task.name, len(task.train), len(task.evaluation)) == ("weather", 30, 5)


def test_a_missing_folder_and_one_without_training_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        write_recipe(tmp_path / "nowhere", tmp_path / "recipe.yaml")
    (tmp_path / "labels.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"no file with rows to train on \(labels.json: no rows of a known format"):
        write_recipe(tmp_path, tmp_path / "recipe.yaml")
    assert not (tmp_path / "recipe.yaml").exists()


def test_the_real_superni_folder_becomes_a_recipe_of_ten_tasks(shared_dir, tmp_path):
    write_recipe(shared_dir / "data/superni", tmp_path / "recipe.yaml")
    tasks = load_recipe(tmp_path / "recipe.yaml").stream.tasks
    assert len(tasks) == 10
    assert all(task.evaluation and task.demonstrations for task in tasks)
