"""The account of a task's data says what was left out, joined or cut, and nothing where all is used as it stands."""

from __future__ import annotations

import pytest

from everlearn.data.account import PartAccount, TaskAccount, data_line


def test_nothing_is_said_where_all_is_used() -> None:
    whole = TaskAccount("deed", {"train": PartAccount("deed.jsonl", "alpaca", rows=40, instances=40)}, held_out=4)
    assert whole.sentences() == []
    assert data_line([whole, whole]) is None


@pytest.mark.parametrize(
    ("account", "told"),
    [
        (TaskAccount("a", {"train": PartAccount("a", rows=40, set_aside=3)}), "3 of 40 rows set aside"),
        (TaskAccount("a", {"train": PartAccount("a", rows=40, limited=1)}), "1 row left out by a limit"),
        (TaskAccount("a", {"train": PartAccount("a", unread={"history": 9})}), "keys 'history' not read"),
        (TaskAccount("a", joined={"yes": {"Yes": 2}}), "1 label written in several ways"),
        (TaskAccount("a", {"train": PartAccount("a", notes=["quotes are text."])}), "1 note on how it was read"),
        (TaskAccount("a", notes=["one.", "two."]), "2 notes on how it was read"),
        (TaskAccount("a", cut_prompts=10), "10 prompts cut"),
        (TaskAccount("a", cut_answers=2), "2 answers cut"),
        (TaskAccount("a", too_long=2), "2 rows left out as too long"),
        (TaskAccount("a", long_evaluation_prompts=1), "1 evaluation prompt longer than any trained on"),
        (TaskAccount("a", long_evaluation_answers=2), "2 evaluation answers longer than a model may write"),
    ],
)
def test_whatever_is_not_used_as_it_stands_is_in_the_line_and_in_a_sentence(account: TaskAccount, told: str) -> None:
    assert data_line([account]) == f"data: {told}; 'everlearn inspect RECIPE' shows it"
    assert account.sentences()


def test_the_line_sums_over_tasks_and_parts() -> None:
    parts = {name: PartAccount("a", rows=10, set_aside=1, unread={"id": 1}) for name in ("train", "evaluation")}
    line = data_line([TaskAccount("a", parts, cut_prompts=1), TaskAccount("b", parts, cut_prompts=2)])
    assert line is not None
    assert line.startswith("data: 4 of 40 rows set aside, 3 prompts cut, keys 'id' not read;")
