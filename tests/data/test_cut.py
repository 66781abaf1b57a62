from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.data.account import TaskAccount
from everlearn.data.stream import load_stream
from everlearn.errors import RecipeError, UserError
from everlearn.files import write_json, write_jsonl
from everlearn.recipe import StreamConfig, TaskConfig, load_recipe, make_recipe
from everlearn.runs.growth import grows, longer
from tests.data.test_classes import rows_of

REAL = Path("/work/shared/data/incremental")
ANIMALS = ("zebra", "ape", "cat", "dog", "eel")


@pytest.fixture
def cut(tmp_path: Path):
    """A data set with five classes, cut into tasks."""
    write_jsonl(tmp_path / "train.jsonl", rows_of(*ANIMALS))
    write_jsonl(tmp_path / "test.jsonl", rows_of(*ANIMALS[::-1], each=2, first="test"))

    def cut(**keys):
        seed = keys.pop("seed", 1)
        source = {"train": str(tmp_path / "train.jsonl"), "demonstrations": 0, **keys.pop("source", {})}
        keys = {"classes_per_task": 2, "scenario": "class_incremental", **keys}
        return load_stream(StreamConfig.model_validate({"from": source, **keys}), seed=seed)

    return cut


def test_each_task_brings_the_next_classes_with_their_rows_in_the_order_of_the_data(cut, tmp_path):
    stream = cut(source={"evaluation": str(tmp_path / "test.jsonl")})
    assert stream.names == ["task-1", "task-2", "task-3"]
    assert [task.classes for task in stream] == [("zebra", "ape"), ("cat", "dog"), ("eel",)]
    assert [row.input for row in stream[1].train[:3]] == [
        "question 0 on cat",
        "question 0 on dog",
        "question 1 on cat",
    ]
    assert [row.output for row in stream[1].evaluation] == ["dog", "cat", "dog", "cat"]
    assert {row.task for task in stream for row in (*task.train, *task.evaluation)} == set(stream.names)
    assert [account.parts["train"].rows for account in stream.accounts] == [20, 20, 10]


def test_without_test_rows_some_of_each_class_are_held_out(cut):
    for task in cut():
        assert sorted(row.output for row in task.evaluation) == sorted(task.classes)
        assert not {row.input for row in task.train} & {row.input for row in task.evaluation}


def test_the_order_is_that_of_the_labels_the_seeds_or_named(cut):
    given = cut(source={"labels": ["ape", "dog", "cat", "zebra", "eel"]})
    assert given.classes == ("ape", "dog", "cat", "zebra", "eel")
    one, other = cut(class_order="seed"), cut(class_order="seed", seed=2)
    assert sorted(one.classes) == sorted(other.classes) == sorted(ANIMALS)
    assert one.classes != other.classes
    assert cut(class_order=[*reversed(ANIMALS)], classes_per_task=[1, 4])[1].classes == ("dog", "cat", "ape", "zebra")


def test_a_task_without_a_scenario_has_labels_and_no_classes(cut):
    stream = cut(scenario=None, order=["task-2"])
    assert (stream.names, stream[0].labels, stream[0].classes) == (["task-2"], ("cat", "dog"), ())


@pytest.mark.parametrize("names", [["one", "two"], [{"name": "one"}, {"name": "two"}], {"two": 1, "one": 0}])
def test_numbers_become_the_names_of_their_classes(cut, tmp_path, names):
    rows = [{"text": f"{word} {at}", "label": at % 2} for at, word in enumerate("abcdefghijkl")]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_json(tmp_path / "names.json", names)
    columns = {"input": "text", "output": "label"}
    stream = cut(source={"label_names": str(tmp_path / "names.json"), "columns": columns}, classes_per_task=1)
    assert stream.classes == ("one", "two")
    assert {row.output for row in stream[0].train} == {"one"}


REFUSED = [
    ({"class_order": ["zebra"]}, "stream.class_order leaves out 4 of 5 classes ('ape', 'cat', 'dog', 'eel')"),
    ({"class_order": ["zebbra"]}, "stream.class_order: the data has no class 'zebbra': did you mean 'zebra'?"),
    ({"classes_per_task": [2, 2]}, "stream.classes_per_task: its numbers sum up to 4, and the data has 5 classes"),
    ({"source": {"labels": [*ANIMALS, "fly"]}}, "task task-3: its class 'fly' has no training rows"),
    ({"order": ["task-1", "tsk-2"]}, "no task 'tsk-2': did you mean 'task-2'? The tasks are task-1, task-2, task-3."),
    ({"order": ["task-2", "task-2"]}, "stream.order: name at least one task, and each one once"),
    (
        {"order": ["task-2"], "source": {"train": "nowhere.jsonl"}},
        "stream.from train: no file or folder nowhere.jsonl",
    ),
    ({"source": {"train": "nowhere.jsonl"}}, "stream.from train: no file or folder nowhere.jsonl"),
]


@pytest.mark.parametrize(("keys", "sentence"), REFUSED)
def test_what_does_not_fit_the_data_is_refused(cut, keys, sentence):
    with pytest.raises(UserError) as refused:
        cut(**keys)
    assert sentence in str(refused.value)


def test_a_test_label_that_no_training_row_has_is_refused(cut, tmp_path):
    write_jsonl(tmp_path / "test.jsonl", rows_of(*ANIMALS, "fly", each=2, first="test"))
    with pytest.raises(UserError, match=r"stream\.from: 2 test rows are of 'fly', which is none of the 5 classes"):
        cut(source={"evaluation": str(tmp_path / "test.jsonl")})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "is not valid JSON"),
        ("[" * 100000, "is not JSON that can be read"),
        ('{"a": 0, "a": 1}', "the key 'a' stands twice"),
        ('["a", "a"]', "the name 'a' stands twice"),
        ("[]", "holds no list of the names"),
        ("[1]", "holds no list of the names"),
        ('{"a": 1}', "are not 0 to 0"),
        ('{"a": "x", "b": [1]}', "are not 0 to 1"),
    ],
)
def test_a_file_that_holds_no_names_is_refused(cut, tmp_path, text, sentence):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(UserError) as refused:
        cut(source={"label_names": str(tmp_path / "names.json")})
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        ({"from": "a.jsonl"}, "from needs classes_per_task"),
        ({"classes_per_task": 2}, "are of a data set that is cut into tasks: give from"),
        ({"from": "a.jsonl", "classes_per_task": 0}, "stream.classes_per_task"),
        ({"from": "a.jsonl", "classes_per_task": 2, "tasks": [{"name": "a", "train": "a"}]}, "are both given"),
        ({"from": {"train": "a", "demonstrations": "b.jsonl"}, "classes_per_task": 1}, "they are of one task"),
        (
            {"from": {"train": "a", "labels": ["b"], "label_names": "c"}, "classes_per_task": 1},
            "both name the classes",
        ),
        ({"from": {"train": "embedded", "evaluation": "a"}, "classes_per_task": 1}, "take evaluation out"),
        ({"from": {"train": "embedded", "label_names": "a"}, "classes_per_task": 1}, "take label_names out"),
        ({"tasks": [{"name": "sentiment", "train": "embedded", "labels": ["yes"]}]}, "take labels out"),
        ({"tasks": [{"name": "sentiment", "train": "embedded", "demonstrations": 3}]}, "take demonstrations out"),
        (
            {"from": {"train": "a", "colums": {}}, "classes_per_task": 1},
            "'stream.from.colums' (did you mean 'columns'?)",
        ),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(stream, sentence):
    with pytest.raises(UserError) as refused:
        make_recipe({"stream": stream})
    assert sentence in str(refused.value)


def test_a_recipe_names_files_beside_itself_and_is_read_again_as_written(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", rows_of("ape"))
    (tmp_path / "r.yaml").write_text(json.dumps({"stream": {"from": "train.jsonl", "classes_per_task": 1}}))
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.stream.from_ is not None
    assert recipe.stream.from_.train == str(tmp_path / "train.jsonl")
    assert make_recipe(recipe.model_dump(mode="json")) == recipe


def test_the_embedded_intents_are_five_fields_of_five(cut):
    stream = cut(source={"train": "embedded"}, classes_per_task=5)
    assert [len(task.train) for task in stream] == [200] * 5
    assert [len(task.evaluation) for task in stream] == [100] * 5
    texts = [row.input for task in stream for row in (*task.train, *task.evaluation)]
    assert len(set(texts)) == len(texts) == 1500
    assert cut(source={"train": "embedded"}, classes_per_task=5)[4].train == stream[4].train


@pytest.mark.skipif(not REAL.is_dir(), reason="the published data sets are not here")
@pytest.mark.parametrize(
    ("name", "each", "tasks", "rows", "first"),
    [
        ("clinc150", 10, 15, (15000, 4500), "restaurant reviews"),
        ("banking77", 11, 7, (10003, 3080), "card arrival"),
        ("fewrel16", 2, 8, (6720, 2240), "follows"),
    ],
)
def test_the_published_data_sets_are_cut_as_they_are(name, each, tasks, rows, first):
    source = {
        "train": str(REAL / f"{name}.train.jsonl.gz"),
        "evaluation": str(REAL / f"{name}.test.jsonl.gz"),
        "label_names": str(REAL / f"{name}.labels.json"),
        "columns": {"input": "text", "output": "label"},
    }
    keys = {"from": source, "classes_per_task": each, "scenario": "class_incremental"}
    stream = load_stream(StreamConfig.model_validate(keys), seed=1)
    assert (len(stream), len(stream.classes)) == (tasks, tasks * each)
    assert (sum(len(task.train) for task in stream), sum(len(task.evaluation) for task in stream)) == rows
    assert stream.classes[0] == first


def test_rows_that_a_run_has_kept_are_used_where_the_data_is_gone(cut):
    kept = {task.name: (task, TaskAccount(task.name)) for task in cut()}
    gone = {"from": "nowhere.jsonl", "classes_per_task": 2, "scenario": "class_incremental"}
    stream = load_stream(StreamConfig.model_validate(gone), seed=1, kept=kept.get)
    assert stream.classes == ("zebra", "ape", "cat", "dog", "eel")
    assert stream.notes[0].startswith("stream.from cannot be read (stream.from train: no file or folder nowhere.jsonl")
    later = StreamConfig.model_validate({**gone, "order": ["task-3", "task-2"]})
    assert load_stream(later, seed=1, kept=kept.get).classes == ("eel", "cat", "dog")
    for config, there in ((StreamConfig.model_validate(gone), {}), (later, {"task-3": kept["task-3"]})):
        with pytest.raises(UserError, match=r"stream\.from train: no file or folder"):
            load_stream(config, seed=1, kept=there.get)


def test_no_task_is_added_to_those_that_are_cut_from_one_data_set():
    recipe, listed = load_recipe("incremental"), load_recipe("embedded")
    assert not grows(recipe.stream, recipe.stream)
    assert not grows(recipe.stream, listed.stream)
    with pytest.raises(RecipeError, match=r"runs/a has tasks that are cut from one data set \(stream\.from\)"):
        longer(recipe, TaskConfig(name="more", train="more.jsonl"), Path("runs/a"))
