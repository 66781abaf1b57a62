"""Labels are compared as the metric compares them; spellings that are joined are counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from everlearn.data.instance import Instance
from everlearn.data.labels import Spellings, find_labels
from everlearn.data.tasks import Account, build_task
from everlearn.recipe import TaskConfig


def rows_of(*outputs: str) -> list[Instance]:
    return [Instance("", f"q{at}", output, "t") for at, output in enumerate(outputs)]


VARIANTS = {
    "white space": "late ",
    "a line break": "late\n",
    "a space that does not break": "\N{NO-BREAK SPACE}late",
    "capitals": "LATE",
    "a byte order mark": "\ufefflate",
    "a space of no width": "la\u200bte",
    "another mark of direction": "late\u200e",
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_spellings_that_accuracy_takes_for_one_label_are_joined_and_counted(variant: str) -> None:
    train = rows_of(*["early", "late"] * 6, variant)
    labels, _ = find_labels(train, rows_of(variant))
    assert labels == ("early", "late")
    joined: dict[str, dict[str, int]] = {}
    assert [row.output for row in Spellings(labels, True).join(train, joined)] == [*["early", "late"] * 6, "late"]
    assert joined == {"late": {variant: 1}}


def test_unicode_forms_of_the_same_letters_are_one_label() -> None:
    assert find_labels(rows_of(*["caf\u00e9", "bar"] * 3, *["cafe\u0301"] * 2), [])[0] == ("bar", "caf\u00e9")


def test_a_label_is_written_as_most_training_rows_write_it() -> None:
    assert find_labels(rows_of(*[" Yes", " no"] * 3, "yes"), [])[0] == (" Yes", " no")


def test_where_the_metric_minds_capitals_they_make_another_label() -> None:
    train = rows_of(*["us", "US"] * 3)
    assert find_labels(train, [], ignore_case=False)[0] == ("US", "us")
    assert find_labels(train, [], ignore_case=True)[0] == ()


def test_declared_labels_that_differ_in_capitals_alone_stay_apart() -> None:
    spellings = Spellings(["us", "US"], ignore_case=True)
    assert [spellings.label(text) for text in ("us", "US ", "Us")] == ["us", "US", None]
    assert Spellings(["a", "a "], ignore_case=True).label("a  ") is None


def test_many_classes_with_few_rows_each_are_labels_and_free_text_is_not() -> None:
    intents = [f"intent {at}" for at in range(77)]
    labels, reason = find_labels(rows_of(*intents * 5), rows_of(*intents))
    assert len(labels) == 77
    assert reason == "77 distinct short answers in 385 training rows"
    names = [f"name {at}" for at in range(60)]
    assert find_labels(rows_of(*names, *names[:20] * 6), [])[0] == (), "most answers are given once"
    assert find_labels(rows_of(*names * 2), [])[0] == ()


def test_a_few_evaluation_answers_that_are_no_label_leave_the_labels_and_many_do_not() -> None:
    train = rows_of(*["a", "b"] * 9)
    assert find_labels(train, rows_of(*["a"] * 19, "c"))[0] == ("a", "b")
    assert find_labels(train, rows_of(*["a"] * 7, "c")) == (
        (), "1 of 8 evaluation answers are no training answers",
    )  # fmt: skip


def build(tmp_path: Path, train: list[str], evaluation: list[str], account: Account, **config: object):
    for name, outputs in (("train", train), ("evaluation", evaluation)):
        rows = ({"input": f"{name} {at}", "output": output} for at, output in enumerate(outputs))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config[name] = str(tmp_path / f"{name}.jsonl")
    return build_task(TaskConfig.model_validate({"name": "t", "demonstrations": 2, **config}), account, seed=1)


def test_one_space_changes_neither_metric_nor_labels_and_is_told(tmp_path: Path) -> None:
    account = Account()
    task = build(tmp_path, ["early", "late", "late "] * 4, ["early"] * 9 + ["Late\t"], account)
    assert (task.metric, task.labels) == ("accuracy", ("early", "late"))
    assert {row.output for row in (*task.train, *task.evaluation)} == {"early", "late"}
    (told,) = account.tasks
    assert told.joined == {"late": {"late ": 4, "Late\t": 1}} or told.joined == {"late ": {"late": 4, "Late\t": 1}}
    assert (told.metric, told.metric_reason) == ("accuracy", "2 distinct short answers in 12 training rows")


def test_an_evaluation_answer_that_is_no_label_is_told(tmp_path: Path) -> None:
    account = Account()
    task = build(tmp_path, ["a", "b"] * 6, ["a"] * 10 + ["maybe"], account)
    assert task.metric == "accuracy"
    assert account.notes == [
        "task t: 1 of 11 evaluation answers are no label of the training rows (the first is 'maybe'), so no answer "
        "that was learnt can be right: mend them, or give the labels."
    ]


def test_declared_labels_are_read_in_other_spellings(tmp_path: Path) -> None:
    account = Account()
    task = build(tmp_path, ["Yes", "no "] * 3, ["yes"], account, labels=["yes", "no"])
    assert {row.output for row in task.train} == {"yes", "no"}
    assert account.tasks[0].joined == {"yes": {"Yes": 3}, "no": {"no ": 3}}
    account = Account()
    build(tmp_path, ["Yes", "no"] * 3, ["yes"], account, labels=["yes", "no"], metric="rouge_l")
    assert [bad.reason for bad in account.bad] == ["output 'Yes' is none of the labels no, yes"] * 3


@pytest.mark.parametrize(("name", "count"), [("banking77", 77), ("clinc150", 150), ("fewrel16", 16)])
def test_real_sets_of_many_classes_have_accuracy(shared_dir: Path, name: str, count: int, tmp_path: Path) -> None:
    folder = shared_dir / "data/incremental"

    def outputs(part: str) -> list[str]:
        lines = gzip.decompress((folder / f"{name}.{part}.jsonl.gz").read_bytes()).splitlines()
        return [str(json.loads(line)["label"]) for line in lines]

    task = build(tmp_path, outputs("train")[:: 20 if count > 20 else 1], outputs("test"), Account())
    assert (task.metric, len(task.labels)) == ("accuracy", count)
