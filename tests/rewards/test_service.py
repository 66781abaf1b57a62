"""A scoring service over HTTP: whole groups in one call, nothing asked twice, and an end to waiting."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from everlearn import http
from everlearn.errors import RunError
from everlearn.rewards.scorers import ScorerSettings, ServiceScorer
from everlearn.training.phase import PolicyTraining
from everlearn.training.policy import Judge


class Service(HTTPServer):
    """Gives each translation its length; fails as often as asked."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, str]]] = []
        self.failures, self.answer = 0, lambda rows: {"scores": [float(len(row["mt"])) for row in rows]}
        super().__init__(("127.0.0.1", 0), Answering)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/score"


class Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        service: Any = self.server
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = 503 if service.failures else 200
        service.failures -= bool(service.failures)
        if status == 200:
            service.asked.append(rows)
        body = json.dumps(service.answer(rows) if status == 200 else {"error": "busy"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
    server = Service()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def settings_of(service: Service) -> ScorerSettings:
    return ScorerSettings("service", service.address, timeout_s=5.0, retries=2)


def test_a_group_is_one_call_and_nothing_is_asked_twice(service: Service, tmp_path: Path) -> None:
    kept = tmp_path / "scores.jsonl"
    scorer = ServiceScorer(settings_of(service), kept)
    assert scorer.score(["s"] * 3, ["a", "bb", "a"], ["r"] * 3) == [1.0, 2.0, 1.0]
    assert service.asked == [[{"src": "s", "mt": "a", "ref": "r"}, {"src": "s", "mt": "bb", "ref": "r"}]]
    kept.write_text(kept.read_text() + '{"src": "s", "mt"', encoding="utf-8")  # as a kill may leave it
    again = ServiceScorer(settings_of(service), kept)
    assert again.score(["s", "s"], ["bb", "ccc"], ["r", "r"]) == [2.0, 3.0]
    assert [[row["mt"] for row in rows] for rows in service.asked] == [["a", "bb"], ["ccc"]]


def test_a_busy_service_is_asked_again_and_a_silent_one_is_named(service: Service) -> None:
    service.failures = 2
    assert ServiceScorer(settings_of(service), None).score(["s"], ["a"], ["r"]) == [1.0]
    service.failures = 3
    with pytest.raises(RunError, match=r"method.scorer_source: http://127.*answers 503 \(busy\) in 3 attempts"):
        ServiceScorer(settings_of(service), None).score(["s"], ["b"], ["r"])


def test_the_published_reply_to_one_translation_is_taken(service: Service) -> None:
    service.answer = lambda rows: {"system_score": 3.42}  # type: ignore[assignment, dict-item, return-value]
    scorer = ServiceScorer(settings_of(service), None)
    assert scorer.score(["s"], ["a"], ["r"]) == [3.42]
    with pytest.raises(RunError, match="gives no list 'scores' of 2 numbers"):
        scorer.score(["s", "s"], ["b", "c"], ["r", "r"])


def test_scores_that_were_begun_ahead_are_those_of_the_group(service: Service) -> None:
    from everlearn.data.instance import Instance

    rows = (Instance("", "s", "r", "t"),)
    policy = PolicyTraining(rows, settings_of(service), prompts=1, rollouts=3)
    judge = Judge(policy, ServiceScorer(policy.scorer, None))
    written = ["so</think><answer>aa</answer>", "no tags", "so</think><answer>b</answer>"]
    judge.begin(0, written)
    assert judge.quality([0, 0, 0], written) == [2.0, 0.0, 1.0]
    assert [[row["mt"] for row in rows] for rows in service.asked] == [["aa", "b"]]
    assert judge.format(written) == [0.2, 0.0, 0.2]
