"""The first look: what cannot work is refused before the rest is written, and what works is as it would be without."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import everlearn.models.embeddings as embeddings
from everlearn.errors import UserError
from everlearn.synthesis import candidate_steps, continuations
from everlearn.synthesis.options import DemonstrationOptions
from everlearn.synthesis.pipeline import synthesize_task, try_base
from tests.synthesis.fakes import Workshop, answer_parity, make_workshop, number_task

ROWS = {"clusters": 3, "ratio": 1.0}  # 40 rows asked for, 210 continuations in two chunks


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "CHUNK_SEQUENCES", 80)
    monkeypatch.setattr(embeddings, "embed_texts", lambda _, texts, **__: np.eye(len(texts), 4, dtype=np.float32))


def made(workshop: Workshop, **values: object) -> list[str]:
    rows = synthesize_task(
        number_task(labels=True), DemonstrationOptions.model_validate({**ROWS, **values}), workshop.tools
    )
    return [row.query + row.output for row in rows.rows]


def tried(workshop: Workshop, **values: object) -> None:
    try_base(number_task(labels=True), DemonstrationOptions.model_validate({**ROWS, **values}), workshop.tools)


def written(text: str) -> Callable[[str, random.Random], str]:
    return lambda prompt, stream: text


def test_a_first_look_changes_no_row_and_writes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = make_workshop(tmp_path / "looked")
    tried(looked)
    assert len(looked.base.calls) == 1
    rows = made(looked)
    monkeypatch.setattr(candidate_steps, "has_several_chunks", lambda job: False)
    whole = make_workshop(tmp_path / "whole")
    monkeypatch.setattr("everlearn.synthesis.pipeline.has_several_chunks", lambda job: False)
    assert made(whole) == rows
    raw = Path("synthesis") / "raw" / "raw.jsonl"
    assert (whole.folder / raw).read_bytes() == (looked.folder / raw).read_bytes()
    assert [texts for texts, _ in looked.base.calls] == [texts for texts, _ in whole.base.calls]
    first = (looked.folder / "synthesis" / "first" / raw.relative_to("synthesis")).read_text(encoding="utf-8")
    assert (looked.folder / raw).read_text(encoding="utf-8").startswith(first)


@pytest.mark.parametrize("preset", ["faithful", "improved"])
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_base_that_does_not_go_on_with_examples_is_refused_after_its_first_chunk(
    preset: str, is_alone: bool, tmp_path: Path
) -> None:
    workshop = make_workshop(tmp_path, write=written("I am \x1b[31mlost" + " and lost" * 100))
    options = {"preset": preset, "samples_per_prompt": 7}
    message = (
        r"task numbers: the first \d+ of 2\d\d continuations .* give 0 valid .*dropped: \d+ no output; the model "
    )
    message += r"wrote, for example, 'I am \\x1b\[31mlost[^']*'\): give more and shorter demonstrations"
    with pytest.raises(UserError, match=message):
        (tried if is_alone else made)(workshop, **options)
    assert len(workshop.base.calls) == 1
    assert not workshop.latest.calls


def test_a_base_that_writes_nothing_is_refused_in_these_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model wrote, for example, nothing\\)"):
        tried(make_workshop(tmp_path, write=written("")))


def test_answers_outside_the_labels_are_refused_where_they_stay(tmp_path: Path) -> None:
    def write(text: str, stream: random.Random) -> str:
        return f" number {stream.randrange(10**6)}\nOutput: perhaps"

    with pytest.raises(UserError, match=r"\d+ unknown label; .* 'perhaps'\): check the task's labels, give more"):
        tried(make_workshop(tmp_path / "stay", write=write), refine=False)
    tried(make_workshop(tmp_path / "go", write=write))


def test_minimum_zero_goes_on(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=written("lost"))
    assert made(workshop, minimum=0) == []
    assert len(workshop.base.calls) > 1


@pytest.mark.parametrize("one_in", [2, 5, 10])
def test_a_base_that_is_right_now_and_then_is_not_refused(one_in: int, tmp_path: Path) -> None:
    def write(text: str, stream: random.Random) -> str:
        return f" number {stream.randrange(10**6)}\nOutput: odd" if stream.randrange(one_in) == 0 else "lost"

    assert len(made(make_workshop(tmp_path, write=write), near_duplicates=1.0)) >= 10


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("", "empty output; the model wrote, for example, nothing")] * 1
    + [(" maybe", "unknown label; the model wrote, for example, 'maybe'")],
)
def test_a_trained_model_without_an_answer_is_refused_before_the_other_chunks(
    answer: str, reason: str, tmp_path: Path
) -> None:
    workshop = make_workshop(tmp_path)
    workshop.latest.write = written(answer)
    with pytest.raises(UserError, match=rf"0 of the first \d+ answers of the trained model .*\d+ {reason}\)"):
        made(workshop, spare=9, minimum=1.0)
    assert len(workshop.base.calls) == 1
    assert made(workshop, spare=9, minimum=1.0, refine=False)


def test_published_rehearsal_without_any_answer_is_refused(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    workshop.latest.write = written(" ")
    with pytest.raises(UserError, match=r"only 0 valid synthetic instances, at least 1 .*train longer"):
        made(workshop, preset="faithful")
    workshop.latest.write = lambda text, stream: answer_parity(text, stream) if stream.random() < 0.5 else ""
    other = make_workshop(tmp_path / "other")
    other.latest.write = workshop.latest.write
    rows = made(other, preset="faithful")
    assert 0 < len(rows) < 40
    assert any("synthetic instances rather than 40" in line and "empty output" in line for line in other.lines)
