"""Which of two answers a judge prefers: a language model behind an OpenAI-compatible server.

Every pair is asked about twice, each answer standing first once, since judges favour a place (arXiv 2306.05685,
sections 3.3 and 3.4). A pair is won or lost where both orders say so, and tied where they differ; answers that are
equal are tied without a question. The win rate is the mean of 1, 1/2 and 0.

Judges also favour length. The length-controlled win rate is what a logistic regression predicts for answers of equal
length, after AlpacaEval 2 (arXiv 2404.04475, section 3): logit P = theta + phi tanh(d / s), where d is the difference
of the two lengths in characters and s the standard deviation of d, fitted to the results 1, 1/2, 0 with phi^2 / 2
added to the loss, so that it stays finite; 1 / (1 + exp(-theta)) is reported. Their third term, the difficulty of a
question, needs answers of many models and is left out, so figures are not those of their table.

An answer of the judge is kept as soon as it has come, in a file that all runs share: no question is asked twice,
whatever is killed, and by whichever run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everlearn.evaluation.bootstrap import mean_interval, percentile_interval
from everlearn.files import append_text
from everlearn.fingerprints import fingerprint_of
from everlearn.http import Server, ServerError
from everlearn.progress import Tick

SYSTEM = (
    "You compare two answers to the same request. Judge how well each does what was asked: whether it is right, "
    "complete and to the point. Neither the order of the answers nor their length matters."
)
QUESTION = """\
The request:
<request>
{request}
</request>

Answer 1:
<answer-1>
{first}
</answer-1>

Answer 2:
<answer-2>
{second}
</answer-2>

Which answer is better? Reply with one word: 1, 2 or tie."""
FIRST, SECOND, TIE = "1", "2", "tie"


@dataclass(frozen=True)
class Pair:
    """One request, answered twice.

    Attributes:
        task: Whose row it is.
        id: Of the row.
        request: As everlearn's prompts have it: instruction and input.
        answer: Of the model that is judged.
        reference: Of the other.
    """

    task: str
    id: str
    request: str
    answer: str
    reference: str

    @property
    def is_equal(self) -> bool:
        """Whether there is nothing to choose."""
        return self.answer.strip() == self.reference.strip()


@dataclass(frozen=True)
class Judge:
    """A model behind a server.

    Attributes:
        server: Where it is asked.
        model: Its name there.
        max_tokens: Longest reply; a model that thinks aloud needs hundreds.
        parallel: Questions at a time.
        kept: File of all that it has replied so far.
    """

    server: Server
    model: str
    max_tokens: int
    parallel: int
    kept: Path

    def check(self) -> None:
        """Asks the server for its models, where it lists any.

        Raises:
            ServerError: it cannot be reached, or serves no model of the name.
        """
        try:
            served = self.server.models()
        except ServerError as error:
            if error.status in (404, 405):  # some have no list
                return
            raise
        if served and self.model not in served:
            raise ServerError(
                f"{self.server.key}: {self.server.url} serves no model {self.model!r}, but {', '.join(served[:10])}: "
                "name one of them in evaluation.judge.model."
            )

    def verdicts(self, pairs: Sequence[Pair], tick: Tick) -> list[tuple[str, str] | None]:
        """What it replies to each pair in both orders: the model's answer first, then second; None: they are equal.

        Raises:
            ServerError: the server does not answer; what it has answered is kept.
        """
        known = self._read()
        orders = [self._orders(pair) for pair in pairs]
        wanted = {key: question for both in orders for key, question in both if key not in known}
        total = len({key for both in orders for key, _ in both})
        tick(total - len(wanted), total, resumed=True)
        pool = ThreadPoolExecutor(self.parallel)
        asked: dict[Future[str], str] = {}
        try:
            asked |= {pool.submit(self._reply, question): key for key, question in wanted.items()}
            for at, done in enumerate(as_completed(asked), total - len(wanted) + 1):
                reply = known[asked[done]] = done.result()
                self._keep(asked[done], reply)
                tick(at, total)
        finally:
            pool.shutdown(cancel_futures=True)
            for done, key in asked.items():  # what was under way when another question failed
                if key not in known and not done.cancelled() and done.exception() is None:
                    self._keep(key, done.result())
        return [(known[both[0][0]], known[both[1][0]]) if both else None for both in orders]

    def _orders(self, pair: Pair) -> list[tuple[str, str]]:
        """Both questions with their keys; none about equal answers."""
        if pair.is_equal:
            return []
        ask = partial(QUESTION.format, request=pair.request)
        questions = [ask(first=pair.answer, second=pair.reference), ask(first=pair.reference, second=pair.answer)]
        return [(fingerprint_of([self.model, self.max_tokens, SYSTEM, question]), question) for question in questions]

    def _reply(self, question: str) -> str:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        answer = self.server.post("chat/completions", body)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ServerError(
                f"{self.server.key}: {self.server.url} answers chat/completions with no message: is it a server of "
                "OpenAI's protocol for chats?"
            ) from None
        return str(content or "")

    def _keep(self, question: str, reply: str) -> None:
        """Adds a line; one that a kill has cut does not swallow it, since every line begins anew."""
        append_text(self.kept, "\n" + json.dumps({"question": question, "reply": reply}) + "\n")

    def _read(self) -> dict[str, str]:
        """Replies kept so far; a line that a kill has cut is no reply."""
        if not self.kept.exists():
            return {}
        found: dict[str, str] = {}
        for line in self.kept.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                found[str(row["question"])] = str(row["reply"])
            except (ValueError, KeyError, TypeError):
                continue
        return found


def read_reply(text: str) -> str | None:
    """`1`, `2` or `tie`; None where the reply says none of them, or several. What a model thinks aloud is left out."""
    said = re.sub(r"(?s)^.*</think(?:ing)?>", "", text)
    found = set(re.findall(r"(?<![\w.])(1|2|tie)(?![\w]|\.\d)", said.lower()))
    return found.pop() if len(found) == 1 else None


def preference(both: tuple[str, str] | None) -> float | None:
    """1: won, 0: lost, 1/2: tied or the orders differ; None: a reply that cannot be read.

    Args:
        both: Replies with the model's answer first, and second; None for equal answers.
    """
    if both is None:
        return 0.5
    first, second = map(read_reply, both)
    if first is None or second is None:
        return None
    won, lost = (first, second) == (FIRST, SECOND), (first, second) == (SECOND, FIRST)
    return 1.0 if won else 0.0 if lost else 0.5


def score_pairs(
    pairs: Sequence[Pair],
    replies: Sequence[tuple[str, str] | None],
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> dict[str, object]:
    """Win rates over some pairs, in per cent.

    Args:
        pairs: What was asked about.
        replies: Of `Judge.verdicts`.
        samples: Resamples behind the intervals.
        confidence: Of the intervals.
        seed: Of the resampling.

    Returns:
        Numbers of rows: judged, won, tied, lost, of the tied ones equal and differing (orders); unreadable, which are
        left out. `win_rate` and `length_controlled`, each with value and interval; None where no row was judged.
    """
    found = [preference(both) for both in replies]
    results = np.array([result for result in found if result is not None])
    lengths = [float(len(pair.answer) - len(pair.reference)) for pair in pairs]
    differences = np.array([length for length, result in zip(lengths, found, strict=True) if result is not None])
    differing = [
        both is not None and result == 0.5 and not read_reply(both[0]) == read_reply(both[1]) == TIE
        for both, result in zip(replies, found, strict=True)
    ]
    counts = {
        "judged": len(results),
        "won": int((results == 1).sum()),
        "tied": int((results == 0.5).sum()),
        "lost": int((results == 0).sum()),
        "equal": sum(pair.is_equal for pair in pairs),
        "differing": sum(differing),
        "unreadable": len(found) - len(results),
    }
    if not len(results):
        return {**counts, "win_rate": None, "length_controlled": None}
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(results), size=len(results)) for _ in range(samples)]
    controlled = np.array([length_controlled(results[rows], differences[rows]) for rows in drawn])
    plain = mean_interval([*map(float, results)], samples, confidence, seed)
    return {
        **counts,
        "win_rate": _percent(float(results.mean()), plain),
        "length_controlled": _percent(
            length_controlled(results, differences), percentile_interval(controlled, confidence)
        ),
    }


def _percent(value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {"value": 100 * value, "low": 100 * interval[0], "high": 100 * interval[1]}


def length_controlled(results: NDArray[np.float64], differences: NDArray[np.float64]) -> float:
    """The share of wins among answers of equal length, by the regression of this file's head.

    Args:
        results: 1, 1/2 or 0 of each row.
        differences: Length of the answer less that of the reference, in characters.
    """
    spread = float(differences.std())
    share = float(results.mean())
    if spread == 0 or share in (0.0, 1.0):
        return share
    inputs = np.stack([np.ones(len(results)), np.tanh(differences / spread)])  # (2, rows)
    ridge = np.diag([0.0, 1.0])
    weights = np.array([np.log(share / (1 - share)), 0.0])  # theta, phi
    for _ in range(50):  # Newton's steps, halved where they would not lower the loss
        chance = 1 / (1 + np.exp(-weights @ inputs))
        slope = inputs @ (chance - results) + ridge @ weights
        bend = (inputs * (chance * (1 - chance))) @ inputs.T + ridge
        step = np.linalg.solve(bend, slope)
        while _loss(weights - step, inputs, results) > _loss(weights, inputs, results) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    return float(1 / (1 + np.exp(-weights[0])))


def _loss(weights: NDArray[np.float64], inputs: NDArray[np.float64], results: NDArray[np.float64]) -> float:
    logits = weights @ inputs
    return float((np.logaddexp(0, logits) - results * logits).sum() + weights[1] ** 2 / 2)
