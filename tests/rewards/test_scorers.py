"""Judges of translations, and the patterns of a walk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.data.instance import Instance
from everlearn.data.translation import asked, direction_of, language_name
from everlearn.data.walk_patterns import likest, read_patterns
from everlearn.errors import DataError, MissingExtraError
from everlearn.rewards.scorers import CometScorer, ScorerSettings, make_scorer


def test_a_table_says_what_it_knows_and_names_what_it_does_not(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    rows = [
        {"hypothesis": "a", "reference": "b", "score": 0.5},
        {"source": "s", "hypothesis": "a", "reference": "b", "score": 0.7},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = make_scorer(ScorerSettings("table", str(file)))
    assert table.score(["s", "t"], ["a", "a"], ["b", "b"]) == [0.7, 0.5]
    with pytest.raises(DataError, match="has no score for the translation 'z' of 's': add it"):
        table.score(["s"], ["z"], ["b"])


def test_a_row_of_a_table_without_a_number_is_named(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text('{"hypothesis": "a", "reference": "b", "score": "good"}\n')
    with pytest.raises(DataError, match="row 1: it has no hypothesis, reference and score"):
        make_scorer(ScorerSettings("table", str(file)))


def test_comet_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"everlearn\[comet\]"):
        CometScorer(tmp_path).score(["a"], ["b"], ["c"])


def test_an_unknown_code_is_refused_with_the_nearest() -> None:
    assert (language_name("de"), language_name("Tolu")) == ("German", "Tolu")
    with pytest.raises(ValueError, match="'frr' is not known, did you mean 'fr'"):
        language_name("frr")


def test_a_direction_is_read_from_the_instruction() -> None:
    assert direction_of(Instance(asked("German", "French"), "x", "y", "t")) == ("German", "French")
    assert direction_of(Instance("Translate.", "x", "y", "t")) is None


def test_a_users_patterns_join_those_that_ship(tmp_path: Path) -> None:
    shipped = read_patterns()
    assert {pattern.id for pattern in shipped} == set("H1 H2 T1 T2 B1 B2 C1 E1 E2 E3 S1 S2 S3".split())
    assert len({pattern.name for pattern in shipped}) == 6
    file = tmp_path / "own.yaml"
    file.write_text("- {id: X1, pattern: mine, steps: [look, write]}\n- {id: H1, pattern: mine, steps: [write]}\n")
    found = {pattern.id: pattern.steps for pattern in read_patterns(file)}
    assert (found["X1"], found["H1"], len(found)) == (("look", "write"), ("write",), len(shipped) + 1)


@pytest.mark.parametrize("text", ["a: 1", "- {id: X}", "- {id: X, pattern: p, steps: [1]}"])
def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=r"own\.yaml"):
        read_patterns(file)


def test_a_walk_is_like_the_pattern_whose_words_it_has() -> None:
    patterns = read_patterns()
    back = (
        "I analyse structure and concepts, translate, then translate back with terms, compare, find shifts and adjust"
    )
    assert likest(back, patterns) == "back translation"
    assert likest("red zam , bus tolu", patterns) is None
