"""F1 of entities against seqeval's own, over a set and over its resamples."""

from __future__ import annotations

import random

import numpy as np
import pytest

from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.errors import MissingExtraError
from everlearn.evaluation import entities
from everlearn.evaluation.bootstrap import resampled_means

pytest.importorskip("seqeval", reason="the extra `entities` is not installed")
KINDS = ("LOC", "PER", "ORG")


def drawn(seed: int, *, is_bio: bool) -> list[list[str]]:
    rng = random.Random(seed)
    tags = ["O", *(f"{mark}-{kind}" for kind in KINDS for mark in "BI")]
    rows = [[rng.choice(tags) for _ in range(rng.randint(1, 9))] for _ in range(40)]
    return [[tag.replace("I-", "B-") for tag in row] for row in rows] if is_bio else rows


def test_scores_are_those_of_seqeval() -> None:
    from seqeval.metrics import f1_score

    gold = drawn(1, is_bio=True)
    rng = random.Random(2)
    wrong = [
        [rng.choice(["O", "B-PER", "I-LOC", "I-PER"]) if rng.random() < 0.4 else tag for tag in row] for row in gold
    ]
    found = [entities.counted(*pair) for pair in zip(gold, wrong, strict=True)]
    counts = np.array([[row.get(kind, [0, 0, 0]) for kind in KINDS] for row in found], dtype=float)
    for metric, average in (("macro_f1", "macro"), ("micro_f1", "micro")):
        assert entities.f1(counts.sum(0), metric) == pytest.approx(100 * f1_score(gold, wrong, average=average))
    means = resampled_means(np.moveaxis(counts, 0, -1), 20, seed=3)  # of a resample seqeval says the same
    draws = np.random.default_rng(3).integers(len(gold), size=(20, len(gold)))
    for at, places in enumerate(draws):
        again = f1_score([gold[place] for place in places], [wrong[place] for place in places], average="macro")
        assert entities.f1(means, "macro_f1")[at] == pytest.approx(100 * again)


def test_a_test_set_has_each_sentence_once_and_the_types_so_far() -> None:
    def row(name: str, tags: str) -> Instance:
        return Instance("", f"text {name}", tags, "t", id=name, words=tuple("xyz"))

    both = row("both", "B-a B-b O")
    tasks = (
        Task("t1", (), (row("one", "B-a O O"), both), metric="macro_f1", classes=("O", "B-a", "I-a")),
        Task("t2", (), (both, row("two", "O O B-b")), metric="macro_f1", classes=("B-b", "I-b")),
    )
    answered = [
        entities.tagged_rows(task, answers, "head")
        for task, answers in zip(tasks, (["B-a O O", "O B-b O"], ["O B-b O", "B-b O O"]), strict=True)
    ]
    assert [one["scores"]["entity_f1"] for one in answered[0]] == [100.0, 0.0]
    whole = entities.TestSet(TaskStream(tasks, scenario="class_incremental"), 100, 1)
    first, spread, by_type = whole.scored(answered[:1], tasks[:1], "macro_f1")
    assert (first, by_type) == (pytest.approx(200 / 3), {"a": pytest.approx(200 / 3)})
    assert spread.shape == (100,)
    value, _, by_type = whole.scored(answered, tasks, "macro_f1")
    assert by_type == {"a": pytest.approx(200 / 3), "b": pytest.approx(50)}
    assert value == pytest.approx((200 / 3 + 50) / 2)


def test_without_seqeval_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entities, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'everlearn\[entities\]'"):
        entities.check_seqeval()
