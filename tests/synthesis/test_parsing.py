"""The parsers against the golden records, their reasons by hand, and the anchored marks of the improved preset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from everlearn.synthesis.parsing import (
    Candidate,
    Counters,
    Limits,
    RawText,
    Sifted,
    counts,
    parse_alpaca,
    parse_superni,
)

STAND_INS = Counters(text=lambda text: 1 + len(text.split()), embedded=lambda text: 2 + len(text.split()))
PROMPT = "Define.\n\nInput: a\nOutput: b\n\nInput:"


def cases(golden_dir: Path, name: str) -> list[dict]:
    return json.loads((golden_dir / "ssr" / name).read_text(encoding="utf-8"))["cases"]


def records(*texts: str, reason: str = "eos") -> list[RawText]:
    return [RawText(PROMPT, text, (0, 1), finish_reason=reason) for text in texts]


def test_superni_records_give_the_golden_instances(golden_dir: Path) -> None:
    golden = cases(golden_dir, "parse_superni.json")
    assert len(golden) == 32
    for case in golden:
        rows = [RawText.from_json(record) for record in case["records"]]
        sifted = parse_superni(rows, STAND_INS, save_more=case["save_more"])
        found = [{"inputs": row.query, "outputs": row.output} for row in sifted.kept]
        assert found == case["expected"], (case["name"], case["save_more"])
        assert sifted.seen == len(sifted.kept) + len(sifted.rejected)


def test_alpaca_records_give_the_golden_instances(golden_dir: Path) -> None:
    golden = cases(golden_dir, "parse_alpaca.json")
    assert len(golden) == 5
    for case in golden:
        sifted = parse_alpaca([RawText.from_json(record) for record in case["records"]], STAND_INS)
        found = [
            {"definition_input": row.query, "definition": row.instruction, "input": row.input, "output": row.output}
            for row in sifted.kept
        ]
        assert found == case["expected"], case["name"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" x", "no_output"),
        (" x\nOutput: y\nOutput: z", "several_outputs"),
        (" \nOutput: y", "empty_input"),
        (" x\nOutput: ", "empty_output"),
        (f" {'w ' * 498}\nOutput: y", "input_too_long"),
        (f" x\nOutput: {'w ' * 128}", "output_too_long"),
    ],
)
def test_each_dropped_piece_has_its_reason(text: str, reason: str) -> None:
    sifted = parse_superni(records(text), STAND_INS)
    assert sifted.dropped == {reason: 1}
    assert sifted.rejected[0]["raw_index"] == 0
    assert sifted.rejected[0]["text"] == text.strip()


def test_pieces_at_the_limits_are_kept() -> None:
    long_input = " ".join(["w"] * 497)  # with BOS 498, the definition 2: exactly 500
    long_output = " ".join(["w"] * 127)  # with BOS 128
    assert len(parse_superni(records(f" {long_input}\nOutput: {long_output}"), STAND_INS).kept) == 1


@pytest.mark.parametrize(
    ("parse", "text", "longest"),
    [
        (parse_superni, " a b c\nOutput: v w x y", Limits(total=6, input=4, output=5, embedded=5)),
        (parse_alpaca, " i j\nInput: a b c\nOutput: v w x y", Limits(total=6, input=4, output=5, embedded=7)),
    ],
)
def test_each_limit_is_the_greatest_length_that_is_kept(
    parse: Callable[..., Sifted], text: str, longest: Limits
) -> None:
    assert len(parse(records(text), STAND_INS, limits=longest).kept) == 1
    for name in ("total", "input", "output", "embedded"):
        tighter = replace(longest, **{name: getattr(longest, name) - 1})
        reason = {"output": "output_too_long", "embedded": "embedding_too_long"}.get(name, "input_too_long")
        assert parse(records(text), STAND_INS, limits=tighter).dropped == {reason: 1}


def test_the_embedding_limit_is_on_the_input_alone() -> None:
    generous = Limits(total=None, input=None)
    text = " ".join(["w"] * 508)
    assert len(parse_superni(records(f" {text}\nOutput: y"), STAND_INS, limits=generous).kept) == 1
    longer = parse_superni(records(f" {text} w\nOutput: y"), STAND_INS, limits=generous)
    assert longer.dropped == {"embedding_too_long": 1}


def test_counts_add_up() -> None:
    sifted = parse_superni(records(" x\nOutput: y\n\nInput: z", " a b"), STAND_INS)
    assert counts(2, sifted) == {"raw": 2, "pieces": 3, "kept": 1, "dropped": {"no_output": 2}}


def test_alpaca_text_seen_before_is_a_duplicate_even_when_the_first_was_too_long() -> None:
    text = f" {'w ' * 510}\nInput: <noinput>\nOutput: y"
    sifted = parse_alpaca(records(text, text), STAND_INS)
    assert sifted.dropped == {"embedding_too_long": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" i\nOutput: y", "no_input"),
        (" i\nInput: a\nInput: b\nOutput: y", "several_inputs"),
        ("\nInput: a\nOutput: y", "empty_instruction"),
        (" i\nInput: a\nOutput: ", "empty_output"),
        (" i\nInput: a", "no_output"),
        (" i\nInput: a\nOutput: b\n\nInstruction: j\nInput: c\nOutput: d", "several_outputs"),
    ],
)
def test_each_dropped_alpaca_generation_has_its_reason(text: str, reason: str) -> None:
    assert parse_alpaca(records(text), STAND_INS).dropped == {reason: 1}


def test_anchored_marks_leave_quoted_words_alone() -> None:
    text = ' What does "Input: x" or "Output: y" mean?\nOutput: a mark\n\nInput: b\nOutput: c'
    anchored = parse_superni(records(text), STAND_INS, is_anchored=True)
    assert [(row.input, row.output) for row in anchored.kept] == [
        ('What does "Input: x" or "Output: y" mean?', "a mark"),
        ("b", "c"),
    ]
    assert [row.input for row in parse_superni(records(text), STAND_INS).kept] == ["b"]


def test_anchored_marks_may_be_indented() -> None:
    text = " a\n  Output: b\n\n\tInput: c\nOutput: d"
    anchored = parse_superni(records(text), STAND_INS, is_anchored=True)
    assert [(row.input, row.output) for row in anchored.kept] == [("a", "b"), ("c", "d")]


def test_anchored_alpaca_takes_every_block_of_a_generation() -> None:
    text = " i\nInput: a\nOutput: b\n\nInstruction: j\nInput: <noinput>\nOutput: d\n\nInstruction: half"
    sifted = parse_alpaca(records(text), STAND_INS, is_anchored=True)
    assert [(row.instruction, row.input, row.output) for row in sifted.kept] == [("i", "a", "b"), ("j", "", "d")]
    assert sifted.dropped == {"no_output": 1}


def test_only_the_last_piece_of_a_generation_that_hit_the_limit_is_cut() -> None:
    text = " x\nOutput: y\n\nInput: z\nOutput: the beg"
    assert [row.is_cut for row in parse_superni(records(text, reason="length"), STAND_INS).kept] == [False, True]
    assert [row.is_cut for row in parse_superni(records(text), STAND_INS).kept] == [False, False]
    blocks = " i\nInput: a\nOutput: b\n\nInstruction: j\nInput: c\nOutput: the beg"
    cut = parse_alpaca(records(blocks, reason="length"), STAND_INS, is_anchored=True)
    assert [row.is_cut for row in cut.kept] == [False, True]


def test_a_continuation_survives_its_file() -> None:
    row = {"inputs": PROMPT, "outputs": " x", "perm_idx": [0, 5], "sample": 2, "finish_reason": "length"}
    assert RawText.from_json(row) == RawText(PROMPT, " x", (0, 5), 2, "length")


def test_a_candidate_survives_its_file() -> None:
    row = Candidate("d", "x", "y", 3, (0, 5), is_cut=True)
    assert Candidate.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_every_piece_is_either_kept_or_dropped() -> None:
    texts = [" x\nOutput: y", "Input:Input:Output: x", "", "\n\nInput: q\nOutput: r\n\nInput: s"]
    sifted = parse_superni(records(*texts), STAND_INS)
    assert sifted.seen == len(sifted.kept) + sum(Counter(sifted.dropped).values())
