from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.data.conversations import Rows
from everlearn.data.instance import Instance, Turn
from everlearn.data.labels import find_labels
from everlearn.data.tasks import Account, build_task, held_out
from everlearn.errors import DataError
from everlearn.recipe import TaskConfig


def rows_of(count: int, output: str = "answer {}") -> list[dict[str, str]]:
    return [{"instruction": "Do it.", "input": f"q{at}", "output": output.format(at)} for at in range(count)]


def halves(count: int) -> list[dict[str, str]]:
    return rows_of(count, "yes")[: count // 2] + rows_of(count, "no")[count // 2 :]


@pytest.fixture
def write(tmp_path):
    def write(name: str, rows: list[dict[str, object]]) -> str:
        path = Path(tmp_path / name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def build(account=None, *, seed=0, train_limit=None, evaluation_limit=None, **config):
    task = TaskConfig(name="t", **config)
    account = account or Account()
    return build_task(task, account, seed=seed, train_limit=train_limit, evaluation_limit=evaluation_limit)


def test_demonstrations_are_the_last_rows_of_the_training_split(write):
    task = build(train=write("a.jsonl", rows_of(30)), evaluation=write("b.jsonl", rows_of(40)[35:]))
    assert task.demonstrations == task.train[-20:]
    assert [row.id for row in task.evaluation] == [f"evaluation-{at}" for at in range(1, 6)]
    assert (task.metric, task.labels) == ("rouge_l", ())


def test_demonstrations_of_a_labelled_task_come_from_the_end_of_each_half(write):
    task = build(train=write("a.jsonl", halves(40)), evaluation=write("b.jsonl", halves(50)[24:26]), demonstrations=4)
    assert (task.metric, task.labels) == ("accuracy", ("no", "yes"))
    assert task.demonstrations == (*task.train[38:], *task.train[18:20])


def test_limits_keep_all_classes_and_demonstrations_are_training_rows(write):
    train, evaluation = write("a.jsonl", halves(40)), write("b.jsonl", halves(60)[20:40])
    task = build(train=train, evaluation=evaluation, train_limit=8, evaluation_limit=4, demonstrations=4)
    assert [row.output for row in task.train] == ["yes"] * 4 + ["no"] * 4
    assert [row.output for row in task.evaluation] == ["yes"] * 2 + ["no"] * 2
    assert set(task.demonstrations) <= set(task.train)


def test_fewer_training_rows_than_demonstrations_are_noted(write):
    account = Account()
    task = build(account, train=write("a.jsonl", rows_of(6)), evaluation=write("b.jsonl", rows_of(9)[6:]))
    assert len(task.demonstrations) == 6
    assert account.notes == ["task t: 6 demonstrations rather than 20, because only 6 training rows can be shown."]


def test_shared_questions_are_noted_and_not_shown_as_demonstrations(write):
    account = Account()
    rows = rows_of(10)
    task = build(
        account,
        train=write("a.jsonl", rows),
        evaluation=write("b.jsonl", rows[8:] + rows_of(12)[10:]),
        demonstrations=3,
    )
    assert len(account.notes) == 1
    assert account.notes[0].startswith("task t: 2 of 4 evaluation rows ask what training rows ask too")
    assert task.demonstrations == task.train[5:8]


def test_demonstrations_from_a_file(write):
    shown = write("c.jsonl", rows_of(20)[15:])
    task = build(
        train=write("a.jsonl", rows_of(10)), evaluation=write("b.jsonl", rows_of(15)[10:]), demonstrations=shown
    )
    assert [row.input for row in task.demonstrations] == ["q15", "q16", "q17", "q18", "q19"]
    assert task.demonstrations[0].id == "demonstrations-1"


def test_demonstrations_of_another_task_are_refused(write):
    other = [{**row, "instruction": "Do something else."} for row in rows_of(20)[15:]]
    with pytest.raises(DataError, match="demonstration demonstrations-1 belongs to another task"):
        build(train=write("a.jsonl", rows_of(10)), demonstrations=write("c.jsonl", other))


def test_demonstrations_that_are_evaluation_rows_are_refused(write):
    with pytest.raises(DataError, match="1 of 3 demonstrations are evaluation rows"):
        build(
            train=write("a.jsonl", rows_of(10)),
            evaluation=write("b.jsonl", rows_of(15)[10:]),
            demonstrations=write("c.jsonl", rows_of(17)[14:]),
        )


def test_a_superni_file_shows_its_positive_examples(tmp_path):
    path = tmp_path / "task.json"
    instances = [{"id": f"i{at}", "input": f"q{at}", "output": [f"a{at}"]} for at in range(10)]
    examples = [{"input": "p1", "output": "P1", "explanation": ""}]
    document = {"Definition": ["Do it."], "Positive Examples": examples, "Instances": instances}
    path.write_text(json.dumps(document), encoding="utf-8")
    task = build(train=str(path), demonstrations=str(path))
    assert [row.input for row in task.demonstrations] == ["p1"]
    assert len(task.train) + len(task.evaluation) == 10


def test_a_task_whose_rows_are_all_bad_is_empty(write):
    with pytest.raises(
        DataError, match=r"task t is empty: none of the 2 rows of .*a.jsonl can be used \(line 1: no output"
    ):
        build(train=write("a.jsonl", [{"input": "x", "instruction": "y"}] * 2), format="alpaca")


def test_declared_labels_and_metric_are_taken_as_they_are(write):
    task = build(train=write("a.jsonl", halves(8)), labels=["yes", "no", "maybe"], metric="exact_match")
    assert (task.labels, task.metric) == (("yes", "no", "maybe"), "exact_match")


def test_held_out_rows_depend_on_the_seed_alone(write):
    train = write("a.jsonl", rows_of(50))
    first, again, other = (build(train=train, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.evaluation != other.evaluation
    assert len(first.evaluation) == 5


def test_rows_that_all_ask_the_same_cannot_be_held_out(write):
    with pytest.raises(DataError, match="ask one and the same question"):
        build(train=write("a.jsonl", [{"input": "q", "output": str(at)} for at in range(5)]))


@settings(max_examples=100, deadline=None)
@given(
    questions=st.lists(st.integers(0, 8), min_size=2, max_size=40),
    ratio=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_a_question_never_stands_on_both_sides(questions, ratio, seed):
    rows = tuple(Instance("", f"q{q}", str(at), "t") for at, q in enumerate(questions))
    config = TaskConfig(name="t", train="x", evaluation_ratio=ratio)
    if len(set(questions)) < 2:
        return
    train, evaluation = (part.instances for part in held_out(Rows(rows, range(len(rows))), config, seed))
    assert train
    assert evaluation
    assert sorted((*train, *evaluation), key=lambda row: int(row.output)) == list(rows)
    assert not {row.query for row in train} & {row.query for row in evaluation}


def test_the_same_question_after_another_history_is_another_question():
    rows = tuple(
        Instance("", "and then?", str(at), "t", history=(Turn("user", str(at)), Turn("assistant", "x")))
        for at in range(4)
    )
    train, evaluation = (part.instances for part in held_out(Rows(rows, range(4)), TaskConfig(name="t", train="x"), 0))
    assert (len(train), len(evaluation)) == (3, 1)


def outputs(*texts: str) -> list[Instance]:
    return [Instance("", str(at), text, "t") for at, text in enumerate(texts)]


def test_few_short_repeated_outputs_are_labels():
    assert find_labels(outputs(*["b", "a"] * 3), outputs("a"))[0] == ("a", "b")


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [
        (outputs(*"aaaa"), []),
        (outputs(*"abab"), []),
        (outputs(*["a", "b"] * 9), outputs("c")),
        (outputs(*["a", "x" * 41] * 9), []),
        (outputs(*["a", "x\ny"] * 9), []),
        (outputs(*[str(at) for at in range(30)], *["a", "b"] * 99), []),
    ],
)
def test_other_outputs_are_free_text(train, evaluation):
    assert find_labels(train, evaluation)[0] == ()
