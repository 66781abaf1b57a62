from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.cli.main import main
from everlearn.data.instance import TaskStream
from everlearn.data.stream import load_stream
from everlearn.errors import DataError
from everlearn.files import write_jsonl
from everlearn.recipe import StreamConfig


def rows_of(*labels: str, each: int = 10, first: str = "question") -> list[dict[str, str]]:
    """Rows of all classes, mixed."""
    return [{"input": f"{first} {at} on {label}", "output": label} for at in range(each) for label in labels]


@pytest.fixture
def load(tmp_path: Path):
    """A stream with a scenario, of tasks given by their training and test rows."""

    def load(*tasks, scenario: str | None = "class_incremental", **keys) -> TaskStream:
        entries = []
        for number, (train, evaluation, *more) in enumerate(tasks, 1):
            entry = {"name": f"t{number}", "train": str(tmp_path / f"{number}.jsonl"), "demonstrations": 0}
            write_jsonl(Path(entry["train"]), train)
            if evaluation is not None:
                entry["evaluation"] = str(tmp_path / f"{number}-test.jsonl")
                write_jsonl(Path(entry["evaluation"]), evaluation)
            entries.append({**entry, **(more[0] if more else {})})
        return load_stream(StreamConfig.model_validate({"tasks": entries, "scenario": scenario, **keys}), seed=1)

    return load


def test_classes_stand_in_the_order_of_the_rows_and_of_the_tasks(load):
    stream = load((rows_of("zebra", "ape"), rows_of("ape", "zebra", first="test")), (rows_of("cat", "Dog"), None))
    assert [task.classes for task in stream] == [("zebra", "ape"), ("cat", "Dog")]
    assert stream.classes == ("zebra", "ape", "cat", "Dog")
    assert [task.labels for task in stream] == [task.classes for task in stream]
    assert (stream.scenario, stream[0].metric) == ("class_incremental", "accuracy")


def test_given_labels_give_the_order_and_one_spelling(load):
    train = rows_of("ape", "Zebra", "zebra", "zebra")
    (task,) = load((train, rows_of("ape", "zebra", first="test"), {"labels": ["zebra", "ape"]}))
    assert task.classes == ("zebra", "ape")
    assert {row.output for row in task.train} == {"zebra", "ape"}
    assert load((train, rows_of("ape", "zebra", first="test")))[0].classes == ("ape", "zebra")


def test_without_a_scenario_there_are_no_classes_and_the_fingerprint_is_as_it_was(load):
    tasks = (rows_of("ape", "zebra"), rows_of("ape", first="test"))
    (plain,), (named,) = load(tasks, scenario=None), load((tasks[0], rows_of("ape", "zebra", first="test")))
    assert plain.classes == ()
    assert named.classes == ("ape", "zebra")
    assert named.fingerprint() != plain.fingerprint()


def test_every_class_gives_rows_that_are_held_out(load):
    (task,) = load((rows_of("ape", "zebra", "cat"), None))
    assert sorted(row.output for row in task.evaluation) == ["ape", "cat", "zebra"]
    assert len(task.train) == 27
    with pytest.raises(DataError, match=r"task t1: its 1 rows of class 'cat' ask one and the same question"):
        load(([*rows_of("ape", "zebra"), {"input": "alone", "output": "cat"}], None))


def test_limits_take_of_each_class_alike_wherever_its_rows_stand(load):
    train = [*rows_of("ape", each=9), *rows_of("zebra", "ape", each=3, first="more")]
    (task,) = load((train, rows_of("ape", "zebra", first="test")), train_limit=4, evaluation_limit=2)
    assert [row.output for row in task.train] == ["ape", "ape", "zebra", "zebra"]
    assert [row.output for row in task.evaluation] == ["ape", "zebra"]


REFUSED = [
    (
        ((rows_of("ape", "cat"), rows_of("ape", "cat")), (rows_of("Cat", "dog"), rows_of("Cat", "dog"))),
        r"class 'Cat' is in two tasks, t1 and t2, and with stream\.scenario each task brings classes of its own",
    ),
    (((rows_of("ape", "cat"), rows_of("ape")),), r"task t1: its class 'cat' has no test rows"),
    (
        ((rows_of("ape"), rows_of("ape"), {"labels": ["ape", "cat"]}),),
        r"task t1: its class 'cat' has no training rows",
    ),
    (
        ((rows_of("ape", "cat"), rows_of("ape", "cat", "dog")),),
        r"task t1: 10 of its test rows are of 'dog', which is none of the task's classes \('ape', 'cat'\)",
    ),
]


@pytest.mark.parametrize(("tasks", "sentence"), REFUSED)
def test_classes_that_cannot_be_learnt_or_tested_are_refused(load, tasks, sentence):
    for limit in (None, 4):
        with pytest.raises(DataError, match=sentence):
            load(*tasks, evaluation_limit=limit)


def test_the_embedded_stream_brings_no_classes(capsys):
    assert main(["inspect", "embedded", "--set", "stream.scenario=class_incremental"]) == 2
    assert "task sentiment brings no classes (it is embedded)" in capsys.readouterr().err
