"""Synthesis prompts against the golden texts, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.data.instance import Instance
from everlearn.synthesis.demonstrations import ordered_subsets
from everlearn.synthesis.prompts import alpaca_prompt, superni_prompt, synthesis_prompts


def words(text: str) -> int:
    return len(text.split())


def pool_of(golden_dir: Path, task: str) -> list[Instance]:
    """A pool of 20 rows: the recorded texts, and as many words where none was recorded."""
    pools = json.loads((golden_dir / "ssr" / "synthesis_pools.json").read_text(encoding="utf-8"))["pools"]
    pool = pools[task]
    definition, rows = text_of(pool["definition"]), [[text_of(part) for part in row] for row in pool["rows"]]
    return [Instance(definition, *row, task) for row in rows]


def text_of(recorded: str | int) -> str:
    return recorded if isinstance(recorded, str) else " ".join(["word"] * recorded)


def cases(golden_dir: Path, name: str) -> list[dict]:
    return json.loads((golden_dir / "ssr" / name).read_text(encoding="utf-8"))["cases"]


def test_superni_prompts_are_the_golden_ones(golden_dir: Path) -> None:
    golden = cases(golden_dir, "synthesis_prompts.json")
    assert len(golden) == 7
    for case in golden:
        pool = pool_of(golden_dir, case["task"])
        subsets = ordered_subsets(len(pool), case["k"])
        limit = case.get("max_length_whitespace_words", 2048)
        prompts = synthesis_prompts(pool, subsets, "superni", count_tokens=words, limit=limit)
        if "resume_after_perm" in case:
            prompts = [prompt for prompt in prompts if prompt.subset > tuple(case["resume_after_perm"])]
            assert prompts[0].text == case["first_text"]
        assert len(prompts) == case["n_prompts"]
        first = [list(prompt.subset) for prompt in prompts[: len(case["first_perms"])]]
        assert first == case["first_perms"]
        if "last_perm" in case:
            assert list(prompts[-1].subset) == case["last_perm"]
        for expected in case.get("prompts", []):
            assert prompts[expected["index"]].text == expected["text"]
            assert list(prompts[expected["index"]].subset) == expected["perm"]


def test_alpaca_prompts_are_the_golden_ones(golden_dir: Path) -> None:
    golden = cases(golden_dir, "alpaca_synthesis_prompts.json")
    assert len(golden) == 2
    for case in golden:
        rows = case["data"][: case["max_instances"]]
        pool = [Instance(row["instruction"], row["input"], row["output"], "alpaca") for row in rows]
        subsets = ordered_subsets(len(pool), case["k"])
        prompts = synthesis_prompts(pool, subsets, "alpaca", count_tokens=words)
        assert len(prompts) == case["n_prompts"]
        for expected in case["prompts"]:
            assert prompts[expected["index"]].text == expected["text"]


def test_the_cue_has_no_trailing_space() -> None:
    row = Instance("Define.", "x", "y", "t")
    assert superni_prompt("Define.", [row]) == "Define.\n\nInput: x\nOutput: y\n\nInput:"
    assert alpaca_prompt([row]).endswith("Output: y\n\nInstruction:")


def test_without_a_definition_a_prompt_begins_with_its_first_pair() -> None:
    assert superni_prompt("", [Instance("", "x", "y", "t")]) == "Input: x\nOutput: y\n\nInput:"


@pytest.mark.parametrize(("limit", "count"), [(9, 0), (10, 1), (11, 1)])
def test_a_prompt_of_the_limit_s_length_is_skipped(limit: int, count: int) -> None:
    pool = [Instance("a b", "c d", "e f", "t")]  # a b Input: c d Output: e f Input: has 9 words
    assert len(synthesis_prompts(pool, [(0,)], "superni", count_tokens=words, limit=limit)) == count
