from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from everlearn import http
from everlearn.http import Server, ServerError, checked_address
from tests.stand_in_server import stand_in


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which last no time here."""
    waited: list[float] = []
    monkeypatch.setattr(http.time, "sleep", waited.append)
    return waited


def test_a_question_is_answered_and_carries_the_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", " secret\n")
    with stand_in(lambda path, body: {"path": path, "body": body}) as served:
        server = Server(served.url, "evaluation.judge.url", "SOME_KEY")
        assert server.post("chat/completions", {"n": 1}) == {"path": "/v1/chat/completions", "body": {"n": 1}}
    assert served.asked[0][2]["Authorization"] == "Bearer secret"


def test_no_key_is_sent_where_none_is_named() -> None:
    with stand_in(lambda path, body: {"data": [{"id": "a"}, {"id": "b"}]}) as served:
        assert Server(served.url, "k").models() == ["a", "b"]
    assert "Authorization" not in served.asked[0][2]


def test_a_busy_server_is_asked_again_after_growing_waits_or_those_it_names(waits: list[float]) -> None:
    answers: list[Any] = [(503, b"", {}), (429, b"", {"Retry-After": "7"}), (500, b"", {}), {"at last": True}]
    with stand_in(lambda path, body: answers[len(served.asked) - 1]) as served:
        assert Server(served.url, "k").get("models") == {"at last": True}
    assert waits == [0.5, 7.0, 14.0]


def test_attempts_and_waits_are_bounded(waits: list[float]) -> None:
    with (
        stand_in(lambda path, body: (503, {"error": {"message": "too many"}}, {"Retry-After": "9999"})) as served,
        pytest.raises(ServerError, match=r"k: .*/v1/models answers 503 \(too many\) in 3 attempts") as refused,
    ):
        Server(served.url, "k", attempts=3).get("models")
    assert (len(served.asked), waits, refused.value.status) == (3, [30.0, 30.0], 503)


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (400, {"error": {"message": "no\nsuch \x1b[31mmodel"}}, r"answers 400 \(no such ␛\[31mmodel\)"),
        (404, b"<html>lost</html>", r"answers 404 \(<html>lost</html>\).*ends in /v1"),
        (401, {"error": "who?"}, r"answers 401 \(who\?\): give the environment variable MY_KEY"),
        (302, b"", "answers 302"),
        (200, b"[1]", "no JSON object"),
        (200, b"{", "no JSON object"),
    ],
)
def test_what_no_further_attempt_mends_is_refused_at_once(status: int, content: Any, words: str) -> None:
    headers = {"Location": "http://127.0.0.1:9/"} if status == 302 else {}
    with stand_in(lambda path, body: (status, content, headers)) as served, pytest.raises(ServerError, match=words):
        Server(served.url, "k", "MY_KEY").get("models")
    assert len(served.asked) == 1


def test_a_server_that_is_not_there_or_does_not_answer_is_told_in_one_sentence() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match="cannot be reached"):
            Server(address, "k", attempts=2).get("models")
    hold = threading.Event()
    with stand_in(lambda path, body: {"late": hold.wait(5)}) as served:
        with pytest.raises(ServerError, match=r"does not answer within 0\.1 seconds in 2 attempts"):
            Server(served.url, "k", timeout_s=0.1, attempts=2).get("models")
        hold.set()


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    answers: list[Any] = [(200, b'{"a"', {"Content-Length": "9"}), {"whole": 1}]
    with stand_in(lambda path, body: answers[len(served.asked) - 1]) as served:
        assert Server(served.url, "k", timeout_s=5).get("models") == {"whole": 1}


@pytest.mark.parametrize(
    "text", ["", "file:///etc/passwd", "127.0.0.1:8000", "http://", "http://a b/", "http://u:p@h/"]
)
def test_an_address_that_is_none_of_a_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give"):
        checked_address(text)
    assert checked_address("https://example.org/v1") == "https://example.org/v1"
