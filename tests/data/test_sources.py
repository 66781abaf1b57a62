from __future__ import annotations

import gzip
import json
import os

import pytest

from everlearn.data.formats import read_rows
from everlearn.data.sources import read_source
from everlearn.errors import DataError

ROWS = [{"input": "a", "output": "x"}, {"input": "b", "output": "y"}]


def inputs(source: str) -> list[str]:
    return [row.input for row in read_rows(source, task="t").rows]


def test_a_folder_is_all_its_data_files_in_order_of_name(tmp_path):
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS[1]), encoding="utf-8")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(ROWS[:1]).encode()))
    (tmp_path / "README.md").write_text("Not data.", encoding="utf-8")
    (tmp_path / ".hidden.jsonl").write_text("{", encoding="utf-8")
    (tmp_path / "inner").mkdir()
    assert inputs(str(tmp_path)) == ["a", "b"]
    assert [row.id for row in read_rows(str(tmp_path), task="t").rows] == ["row-1", "row-2"]


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("Not data.", encoding="utf-8")
    with pytest.raises(DataError, match="holds no data file"):
        read_source(str(tmp_path))


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"no file or folder .*tran.jsonl: did you mean .*/train.jsonl\?"):
        read_source(str(tmp_path / "tran.jsonl"))
    with pytest.raises(DataError, match=r"there is no folder .*nowhere either"):
        read_source(str(tmp_path / "nowhere" / "train.jsonl"))


@pytest.mark.parametrize(
    "source", ["my data", "./owner/name", "a/b/c", "~/data", "data.jsonl", "C:\\data", "here/name"]
)
def test_what_cannot_be_a_name_on_the_hub_is_a_missing_path(tmp_path, monkeypatch, source):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no file or folder"):
        read_source(source)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("{}", encoding="utf-8")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError, match=r"a.jsonl cannot be read: access is denied"):
        read_source(str(path))


def test_a_dataset_saved_to_disk_is_read_with_the_names_of_its_classes(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    rows = read_rows(str(tmp_path / "saved"), columns={"input": "text", "output": "label"}, task="t").rows
    assert [(row.input, row.output) for row in rows] == [("a", "good"), ("b", "bad")]


def test_a_split_of_a_saved_dataset_is_picked_with_an_at_sign(tmp_path):
    from datasets import Dataset, DatasetDict

    saved = tmp_path / "saved"
    DatasetDict({"train": Dataset.from_list(ROWS[:1]), "test": Dataset.from_list(ROWS[1:])}).save_to_disk(saved)
    assert inputs(str(saved)) == ["a"]
    assert inputs(f"{saved}@test") == ["b"]
    with pytest.raises(DataError, match=r"has no split 'dev': write .*@SPLIT with one of train, test"):
        inputs(f"{saved}@dev")


def test_a_split_of_a_saved_dataset_is_found_beside_the_recipe(tmp_path):
    from datasets import Dataset, DatasetDict

    from everlearn.recipe import load_recipe

    DatasetDict({"test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "saved")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stream: {tasks: [{name: t, train: saved@test}]}", encoding="utf-8")
    (task,) = load_recipe(recipe).stream.tasks
    assert inputs(task.train) == ["a", "b"]


def test_a_split_of_a_dataset_without_splits_is_refused(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="leave out '@test'"):
        inputs(f"{tmp_path / 'saved'}@test")


def test_a_damaged_saved_dataset_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="is not a dataset that can be loaded"):
        read_source(str(tmp_path))


def test_a_hub_dataset_is_loaded_by_name_configuration_and_split(monkeypatch):
    import datasets

    asked = []

    def load(*args, **keywords):
        asked.append((args, keywords))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert inputs("owner/name:config@test") == ["a", "b"]
    assert inputs("name") == ["a", "b"]
    assert inputs("owner/na.me-2@train[:10%]") == ["a", "b"]
    assert asked == [
        (("owner/name", "config"), {"split": "test"}),
        (("name", None), {"split": "train"}),
        (("owner/na.me-2", None), {"split": "train[:10%]"}),
    ]


def test_a_hub_dataset_that_cannot_be_had_is_refused_with_both_remedies(monkeypatch):
    import datasets

    def load(*args, **keywords):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match=r"'owner/name' is no file or folder here.*ConnectionError: no network"
    ) as caught:
        read_source("owner/name")
    assert "name[:config][@split]" in str(caught.value)


@pytest.mark.parametrize("name", ["x.jsonl", "folder"])
def test_a_pipe_is_refused_by_name_and_within_a_folder(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(ROWS[0]), encoding="utf-8")
    os.mkfifo((tmp_path if name == "x.jsonl" else folder) / "x.jsonl")
    with pytest.raises(DataError, match=r"x.jsonl is a named pipe, not a regular file"):
        read_source(str(tmp_path / name))


def test_what_only_looks_like_a_file_is_one_sentence(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "d.json").mkdir()
    sentences = {
        "link.jsonl": "is a link to .*gone.jsonl, which is not there",
        "loop.jsonl": "links lead in a circle",
        "d.json": "holds no data file",
        "n" * 300: "longer than the system allows",
        "a\0b.jsonl": "not a name that a file can have",
        "~nobody-here/x.jsonl": "no file or folder",
        "/dev/zero": "is a device",
    }
    for name, sentence in sentences.items():
        with pytest.raises(DataError, match=sentence) as caught:
            read_source(name if name[0] in "~/" else str(tmp_path / name))
        assert len(str(caught.value)) < 600
