"""Pairs that a stand-in judges: both orders, lengths, replies that are kept, servers that die."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from everlearn.evaluation.judging import Judge, Pair, length_controlled, preference, read_reply, score_pairs
from everlearn.http import Server, ServerError
from tests.stand_in_server import Answer, stand_in

PAIRS = [
    Pair("colours", "1", "Which colour?", "red as blood", "blue"),
    Pair("colours", "2", "Which shade?", "dark", "light as air"),
    Pair("colours", "3", "Which tone?", "same ", "same"),
]


def reply(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def answers_in(body: dict[str, Any] | None) -> tuple[str, str]:
    assert body is not None
    asked = body["messages"][-1]["content"]
    first, second = (re.findall(rf"<answer-{n}>\n(.*?)\n</answer-{n}>", asked, re.DOTALL)[0] for n in (1, 2))
    return first, second


def longest(path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """A judge that prefers the longer answer, wherever it stands."""
    first, second = answers_in(body)
    return reply("1" if len(first) > len(second) else "2")


def judge_at(url: str, folder: Path, **keys: Any) -> Judge:
    server = Server(url, "evaluation.judge.url", attempts=1, timeout_s=5)
    return Judge(server, **{"model": "owl", "max_tokens": 16, "parallel": 2, "kept": folder / "kept.jsonl", **keys})


def asked_of(answer: Answer, folder: Path, pairs: list[Pair] = PAIRS) -> tuple[list[Any], int]:
    with stand_in(answer) as served:
        replies = judge_at(served.url, folder).verdicts(pairs, lambda *_, **__: None)
    return replies, len(served.asked)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("1", "1"), ("Answer 2.", "2"), ("**tie**", "tie"), ("Tie!", "tie"), ("", None), ("1 or 2", None),
        ("12", None), ("1.5", None), ("<think>1? 2? tie?</think>\n2", "2"), ("I cannot say.", None),
    ],
)  # fmt: skip
def test_a_reply_is_one_word_or_nothing(text: str, read: str | None) -> None:
    assert read_reply(text) == read


@pytest.mark.parametrize(
    ("both", "result"),
    [
        (("1", "2"), 1.0), (("2", "1"), 0.0), (("1", "1"), 0.5), (("2", "2"), 0.5), (("tie", "tie"), 0.5),
        (("1", "tie"), 0.5), (("what?", "2"), None), (None, 0.5),
    ],
)  # fmt: skip
def test_a_pair_is_won_where_both_orders_say_so(both: tuple[str, str] | None, result: float | None) -> None:
    assert preference(both) == result


def test_every_pair_is_asked_about_in_both_orders_but_equal_answers(tmp_path: Path) -> None:
    replies, count = asked_of(longest, tmp_path)
    assert replies == [("1", "2"), ("2", "1"), None]
    assert count == 4
    scores = score_pairs(PAIRS, replies, samples=200, confidence=0.95, seed=0)
    assert {key: scores[key] for key in ("judged", "won", "tied", "lost", "equal", "differing", "unreadable")} == {
        "judged": 3, "won": 1, "tied": 1, "lost": 1, "equal": 1, "differing": 0, "unreadable": 0,
    }  # fmt: skip
    assert scores["win_rate"]["value"] == pytest.approx(50)  # type: ignore[index]


def test_a_judge_that_goes_by_place_ties_everything(tmp_path: Path) -> None:
    replies, _ = asked_of(lambda path, body: reply("1"), tmp_path)
    scores = score_pairs(PAIRS, replies, samples=200, confidence=0.95, seed=0)
    assert (scores["tied"], scores["differing"], scores["equal"]) == (3, 2, 1)


def test_replies_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    replies, _ = asked_of(lambda path, body: reply("hm"), tmp_path)
    scores = score_pairs(PAIRS[:2], replies[:2], samples=200, confidence=0.95, seed=0)
    assert (scores["judged"], scores["unreadable"], scores["win_rate"]) == (0, 2, None)


def test_no_question_is_asked_twice_and_a_cut_line_is_no_reply(tmp_path: Path) -> None:
    first, count = asked_of(longest, tmp_path)
    kept = tmp_path / "kept.jsonl"
    lines = [line for line in kept.read_text().splitlines() if line]
    assert (len(lines), count) == (4, 4)
    assert asked_of(longest, tmp_path) == (first, 0)
    kept.write_text("\n".join([*lines[:3], lines[3][:20]]))  # as a kill leaves it
    assert asked_of(longest, tmp_path) == (first, 1)
    assert asked_of(longest, tmp_path) == (first, 0)  # the cut line has hidden none of those after it


def test_what_a_dying_server_has_said_is_kept(tmp_path: Path) -> None:
    def dying(path: str, body: dict[str, Any] | None) -> Any:
        return longest(path, body) if len(served.asked) <= 3 else (500, b"gone", {})

    with stand_in(dying) as served, pytest.raises(ServerError, match="answers 500"):
        judge_at(served.url, tmp_path, parallel=1).verdicts(PAIRS, lambda *_, **__: None)
    assert len([*filter(None, (tmp_path / "kept.jsonl").read_text().splitlines())]) == 3
    replies, count = asked_of(longest, tmp_path)
    assert (replies, count) == ([("1", "2"), ("2", "1"), None], 1)


def test_what_was_under_way_when_another_question_failed_is_kept(tmp_path: Path) -> None:
    late = threading.Event()

    def failing(path: str, body: dict[str, Any] | None) -> Any:
        if len(served.asked) == 1:
            late.wait(5)
            return longest(path, body)
        late.set()
        return 400, b"no", {}

    with stand_in(failing) as served, pytest.raises(ServerError, match="answers 400"):
        judge_at(served.url, tmp_path, parallel=2).verdicts(PAIRS[:1], lambda *_, **__: None)
    assert len([*filter(None, (tmp_path / "kept.jsonl").read_text().splitlines())]) == 1


def test_another_judge_is_asked_again(tmp_path: Path) -> None:
    asked_of(longest, tmp_path)
    with stand_in(longest) as served:
        judge_at(served.url, tmp_path, model="raven").verdicts(PAIRS, lambda *_, **__: None)
    assert len(served.asked) == 4
    assert served.asked[0][1]["model"] == "raven"  # type: ignore[index]


def test_a_model_that_is_not_served_is_refused_and_a_server_without_a_list_is_believed(tmp_path: Path) -> None:
    with stand_in(lambda path, body: {"data": [{"id": "raven"}]}) as served:
        with pytest.raises(ServerError, match="serves no model 'owl', but raven"):
            judge_at(served.url, tmp_path).check()
        judge_at(served.url, tmp_path, model="raven").check()
    with stand_in(lambda path, body: (404, b"", {})) as served:
        judge_at(served.url, tmp_path).check()


def test_an_answer_without_a_message_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no message"):
        asked_of(lambda path, body: {"choices": []}, tmp_path)


def test_the_length_controlled_rate_is_the_minimum_of_the_stated_loss() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(20, 60, 120)
    chance = 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(differences / differences.std()))))
    results = rng.choice([0.0, 0.5, 1.0], size=120) * 0.2 + (rng.random(120) < chance) * 0.8
    inputs = np.tanh(differences / differences.std())

    def loss(weights: Any) -> float:
        logits = weights[0] + weights[1] * inputs
        return float((np.log1p(np.exp(logits)) - results * logits).sum() + weights[1] ** 2 / 2)

    theta = minimize(loss, [0.0, 0.0], tol=1e-12).x[0]
    assert length_controlled(results, differences) == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-5)


def test_wins_by_length_alone_count_for_little() -> None:
    differences = np.array([-300.0, 40, 100, 200, 300, 250, 500, 30])
    results = (differences > 0).astype(float)
    assert results.mean() > 0.85
    assert 0.5 < length_controlled(results, differences) < results.mean()
    assert length_controlled(np.ones(3), np.array([1.0, 2, 3])) == 1.0
    assert length_controlled(np.array([1.0, 0, 1]), np.zeros(3)) == pytest.approx(2 / 3)


def test_the_question_holds_request_and_answers_as_they_are(tmp_path: Path) -> None:
    pairs = [Pair("t", "1", "say {this}", "a {first}", "b %s\n")]
    with stand_in(longest) as served:
        judge_at(served.url, tmp_path).verdicts(pairs, lambda *_, **__: None)
    asked = json.dumps([body for _, body, _ in served.asked])
    assert "say {this}" in asked
    assert "a {first}" in asked
