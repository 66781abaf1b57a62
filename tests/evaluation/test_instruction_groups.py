"""Groups of instructions: the recorded similarities, decisions, routes and plans, and what always holds of them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from everlearn.data.instance import Instance
from everlearn.evaluation import instruction_groups
from everlearn.evaluation.instruction_groups import (
    grouped,
    instruction_of,
    instructions_of,
    last_stages,
    planned,
    routed,
    similarities,
    stop_words,
    taken_out,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "lcia"
STOPS = stop_words()
WORDS = "answer Answer question the a of word, phrase; single grün über 42 x translate sentence sentence!".split()


def cases(name: str) -> list:
    found = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in found]


def near(found: object, expected: object) -> bool:
    return found == pytest.approx(expected, abs=1e-9)


def of_sets(texts: Sequence[str], groups: Sequence[Sequence[str]]) -> list[float]:
    return [float(value) for value in similarities(texts, groups, STOPS).mean(axis=0)]


@pytest.mark.parametrize("case", cases("similarity"))
def test_the_recorded_similarities_of_sets(case: dict) -> None:
    found = of_sets(case["current"], case["groups"])
    assert near(found, case["expected_similarities"])
    assert found.index(max(found)) + 1 == case["expected_best_group"]


@pytest.mark.parametrize("case", cases("grouping"))
def test_the_recorded_decisions(case: dict) -> None:
    tasks = [task["instructions"] for task in case["tasks"]]
    decisions, _ = grouped(tasks, case["threshold"], STOPS)
    for at, (found, expected) in enumerate(zip(decisions, case["expected"], strict=True), 1):
        assert near(list(found.similarities), expected["similarities"])
        assert (found.group, "expand" if found.is_new else "reuse") == (expected["group"], expected["decision"])
        until, groups = grouped(tasks[:at], case["threshold"], STOPS)  # later tasks change nothing
        assert until == decisions[:at]
        assert [sorted(group) for group in groups] == expected["codebook_after"]


@pytest.mark.parametrize("case", cases("routing"))
def test_the_recorded_routes(case: dict) -> None:
    for query, expected in zip(case["queries"], case["expected"], strict=True):
        assert near(of_sets(query, case["groups"]), expected["similarities"])
        found = routed(query, case["groups"], case["threshold"], STOPS, alone=False)
        assert set(found) == {(expected["group"], expected["is_fallback"])}
        if len(query) == 1:
            assert routed(query, case["groups"], case["threshold"], STOPS, alone=True) == found


@pytest.mark.parametrize("case", cases("stage_plan"))
def test_the_recorded_plans(case: dict) -> None:
    groups = case["groups"]
    found = [
        {
            "stage": index,
            "group": stage.group,
            "decision": "expand" if stage.is_new else "reuse",
            "start_from_stage": stage.start,
            "averages": stage.averages,
        }
        for index, stage in enumerate(planned(groups, case["expand_init"]), 1)
    ]
    assert found == case["expected_plan"]
    weights = last_stages(groups)
    assert {str(group): stage for group, stage in weights.items()} == case[
        "expected_weights_of_group_after_last_stage"
    ]
    assert [weights[group] for group in groups] == case["expected_stage_that_answers_each_task"]


@pytest.mark.parametrize("case", cases("instruction_text"))
def test_the_recorded_instructions_of_prompts(case: dict) -> None:
    kinds = {"question_answering": "last_line", "grounding": "last_line_to_colon"}
    kept = kinds.get(case["dataset_kind"], "second_line" if case["split"] == "train" else "whole")
    assert [taken_out(prompt, kept) for prompt in case["prompts"]] == case["expected_instructions"]  # type: ignore[arg-type]


def test_a_similarity_is_the_cosine_of_vectors_fitted_on_the_two_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(14)]

    def fitted(one: str, other: str) -> float:
        try:
            vectors = TfidfVectorizer(stop_words="english").fit_transform([one, other])
        except ValueError:  # neither has a word
            return 0.0
        return float((vectors[0] @ vectors[1].T).sum())

    expected = [[fitted(one, other) for other in texts] for one in texts]
    for cells in (1 << 22, 3):  # in one block and in many
        monkeypatch.setattr(instruction_groups, "_CELLS", cells)
        found = similarities(texts, [[text] for text in texts], STOPS)
        assert np.allclose(found, expected, atol=1e-12)
        assert np.allclose(similarities(texts, [texts[:5]], STOPS)[:, 0], np.mean(found[:, :5], axis=1), atol=1e-12)
    assert np.array_equal(found, found.T)
    assert 0 <= found.min() <= found.max() <= 1
    has_words = [text for text in texts if set(text.lower().split()) - {"the", "a", "of", "x"}]
    assert all(similarities([text], [[text]], STOPS)[0, 0] == 1 for text in has_words)  # reaches a threshold of 1


def test_an_instruction_is_that_of_the_row_or_the_first_line_of_its_input() -> None:
    rows = [
        Instance("Say \n it.", "a\nb", "", ""),
        Instance("", "\n first  line\nsecond", "", ""),
        Instance("", "", "", ""),
        Instance("Say it.", "c", "", ""),
    ]
    assert [instruction_of(row, "field") for row in rows] == ["Say it.", "first line", "", "Say it."]
    assert instructions_of(rows, "field") == ["Say it.", "first line", ""]
    assert instruction_of(rows[0], "last_line") == "b"


def test_groups_do_not_depend_on_the_order_of_a_tasks_rows() -> None:
    texts = ["Answer with one word.", "Answer by a single word.", "Name the word."]
    found = [
        grouped([list(order), ["Answer with one word."]], 0.3, STOPS)[0] for order in itertools.permutations(texts)
    ]
    assert {tuple(one.group for one in decisions) for decisions in found} == {(1, 1)}
    assert all(near(list(one[1].similarities), list(found[0][1].similarities)) for one in found)
