"""Conversations are never parted: not by holding out, not by a limit, not by demonstrations."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.data.conversations import Rows, links
from everlearn.data.instance import Instance, Turn
from everlearn.data.tasks import Account, build_task
from everlearn.errors import DataError
from everlearn.recipe import TaskConfig


def talk(*pairs: tuple[str, str]) -> dict[str, Any]:
    turns = [turn for q, a in pairs for turn in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    return {"messages": turns}


def crates(count: int) -> list[dict[str, Any]]:
    """Conversations of three questions each, the later ones asked alike in all."""
    return [talk((f"crate {at}?", f"box {at}"), ("and then?", f"lid {at}"), ("thanks", "bye")) for at in range(count)]


@pytest.fixture
def build(tmp_path: Path):
    def build(rows: list[dict[str, Any]], account: Account | None = None, **config: Any):
        limits = {key: config.pop(key, None) for key in ("train_limit", "evaluation_limit")}
        for part, given_rows in (("train", rows), *config.pop("parts", {}).items()):
            path = tmp_path / f"{part}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in given_rows), encoding="utf-8")
            config[part] = str(path)
        task = TaskConfig.model_validate({"name": "t", "demonstrations": 4, **config})
        return build_task(task, account or Account(), seed=config.get("seed", 3), **limits)

    return build


def of(rows: tuple[Instance, ...]) -> Counter[str]:
    return Counter(row.id.partition(".")[0] for row in rows)


def test_a_conversation_stands_on_one_side_whole(build) -> None:
    account = Account()
    task = build(crates(40), account)
    assert len(task.evaluation) == 12
    assert set(of(task.evaluation).values()) == set(of(task.train).values()) == {3}
    assert not set(of(task.evaluation)) & set(of(task.train))
    shown = {turn.content for row in task.train for turn in row.history}
    assert not any(row.output in shown for row in task.evaluation if row.output != "bye")
    assert account.tasks[0].held_out == 12


def test_limits_take_whole_conversations(build) -> None:
    account = Account()
    task = build(crates(40), account, train_limit=10, evaluation_limit=5)
    assert of(task.train) == dict.fromkeys(of(task.train), 3)
    assert (len(task.train), len(task.evaluation)) == (9, 3)
    told = account.tasks[0]
    assert (told.parts["train"].instances, told.parts["train"].limited) == (120, 99)
    assert told.notes == ["9 held-out instances are left out by the limit."]


def test_a_limit_below_one_conversation_still_leaves_rows(build) -> None:
    assert len(build(crates(40), train_limit=2).train) == 2


def test_demonstrations_are_not_of_evaluated_conversations(build) -> None:
    account = Account()
    rows = crates(12)
    task = build(rows, account, parts={"evaluation": [talk(("crate 11?", "box 11"), ("another?", "no"))]})
    assert "task t: 2 of 2 evaluation rows ask what training rows ask too" in account.notes[0]
    assert {row.history[0].content if row.history else row.input for row in task.demonstrations} <= {
        f"crate {at}?" for at in range(11)
    }
    with pytest.raises(DataError, match="demonstrations are evaluation rows"):
        build(rows[:6], parts={"evaluation": rows[6:], "demonstrations": [talk(("crate 7?", "box 7"), ("x", "y"))]})


def test_one_conversation_alone_cannot_be_held_out(build) -> None:
    with pytest.raises(DataError, match="belong to one conversation, so none can be held out"):
        build(crates(1))


def instance(query: str, output: str, *history: tuple[str, str], instruction: str = "") -> Instance:
    turns = tuple(turn for q, a in history for turn in (Turn("user", q), Turn("assistant", a)))
    return Instance(instruction, query, output, "t", history=turns)


@pytest.mark.parametrize(
    ("one", "other", "linked"),
    [
        (instance("q", "a"), instance("q", "b"), True),
        (instance("q", "a"), instance("p", "a"), False),
        (instance("q2", "a2", ("q", "a")), instance("q", "a"), True),
        (instance("q2", "a2", ("q", "a")), instance("q", "b"), True),
        (instance("q2", "a2", ("q", "a")), instance("q3", "a3", ("q", "b")), True),
        (instance("and then?", "a", ("q", "a")), instance("and then?", "b", ("p", "b")), False),
        (instance("q", "a", instruction="i"), instance("q2", "a2", ("i\n\nq", "a")), True),
        (instance("q2", "a2", ("q", "a"), instruction="i"), instance("q", "a", instruction="i"), True),
    ],
)
def test_rows_are_linked_by_questions_they_share(one: Instance, other: Instance, linked: bool) -> None:
    assert (not links(one).isdisjoint(links(other))) is linked
    assert (Rows((one, other), (1, 2)).split(0.5, seed=1) is None) is linked


def test_one_answer_to_one_question_ties_conversations_unless_it_is_a_phrase() -> None:
    rows = tuple(
        instance("rare" if at < 3 else "thanks", "r" if at < 3 else "bye", (f"q{at}", f"a{at}")) for at in range(30)
    )
    for seed in range(10):
        parts = Rows((*rows, *(instance(f"p{at}", str(at)) for at in range(200))), range(230)).split(0.3, seed)
        assert parts is not None
        assert sum(row.input == "rare" for row in parts[0].instances) in (0, 3)
    phrases = Rows(rows, range(30)).split(0.3, seed=1)
    assert phrases is not None
    assert len(phrases[1].instances) == 9


def test_rows_of_one_id_stay_together_unless_all_have_it() -> None:
    rows = tuple(instance(f"q{at}", "a") for at in range(20))
    pairs = Rows(rows, tuple(at // 2 for at in range(20))).split(0.3, seed=1)
    assert pairs is not None
    assert not set(pairs[0].units) & set(pairs[1].units)
    alike = Rows(rows, ("x",) * 20).split(0.3, seed=1)
    assert alike is not None
    assert len(alike[1].instances) == 6


def test_a_group_of_most_rows_is_never_held_out() -> None:
    rows = tuple(instance("q" if at < 30 else f"q{at}", str(at)) for at in range(34))
    for seed in range(20):
        parts = Rows(rows, range(34)).split(0.4, seed)
        assert parts is not None
        assert not any(row.query == "q" for row in parts[1].instances)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=30), st.integers(0, 9))
def test_no_link_crosses_the_line(pairs: list[tuple[int, int]], seed: int) -> None:
    rows = tuple(instance(f"q{q}", str(at)) for at, (q, _) in enumerate(pairs))
    parts = Rows(rows, tuple(unit for _, unit in pairs)).split(0.3, seed)
    if parts is None or len({unit for _, unit in pairs}) == 1:
        return
    train, evaluation = parts
    assert len(train.instances) + len(evaluation.instances) == len(rows)
    assert not {row.query for row in train.instances} & {row.query for row in evaluation.instances}
