"""Masks, pairs, prompts and the published filter, against the released scripts."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from everlearn.errors import DataError
from everlearn.synthesis.mask_filter import filtered
from everlearn.synthesis.masking import (
    BLANK,
    PROTECTED,
    SCRIPTS,
    Script,
    blanked,
    candidates,
    check_exemplars,
    filled_text,
    instruction_of,
    is_retained,
    mask,
    mask_prompt,
    pairs,
    share_range,
)
from everlearn.synthesis.parsing import Counters

GOLDEN = Path(__file__).parents[1] / "golden" / "sers"
NAMES: dict[str, Script] = {"llama2-7b": "llama2", "chatglm": "chatglm"}
STUB = Counters(text=lambda text: 1 + len(text.split()), embedded=lambda text: 2 + len(text.split()))


def cases(name: str, key: str = "id") -> list:
    return [pytest.param(c, id=c["id"]) for c in json.loads((GOLDEN / name).read_text())["cases"] if key in c]


@pytest.mark.parametrize("case", cases("masking.json"))
def test_a_text_is_masked_as_by_the_scripts(case: dict) -> None:
    script, text = SCRIPTS[NAMES[case["variant"]]], case["text"]
    assert mask(text, script, random.Random(case["python_random_seed"]), task=case["task"]) == case["expected"]
    words = text.strip().split()
    assert {word for word in words if is_retained(word)} == set(case["retained_by_form"])
    if draws := case["draws"]:
        assert list(share_range(len(words), script)) == draws["ratio_range"]
        assert candidates(words) == sorted(draws["candidates_in_order"])
        assert int(len(candidates(words)) * (1 - draws["ratio"])) == draws["keep_num"]
        masked = blanked(words, set(draws["keep_indices"]))
        again = masked.replace("Question", "\nQuestion") if script.parts_questions and case["task"] == "qa" else masked
        assert again == case["expected"]


def test_what_must_stay_stays_and_blanks_never_touch() -> None:
    draw = random.Random(0)
    pool = ["red", "green", "blue", "never", "17", "Peter", "USB", "[", "]", ",", "Context:"]
    for script in SCRIPTS.values():
        for _ in range(200):
            words = draw.choices(pool, k=draw.randint(3, 150))
            masked = mask(" ".join(words), script, draw).split()
            kept = [word for word in words if word in PROTECTED or is_retained(word)]
            assert [word for word in masked if word in PROTECTED or is_retained(word)] == kept
            assert all({one, other} != {BLANK} for one, other in itertools.pairwise(masked))
            share = 1 - (len(masked) - masked.count(BLANK)) / len(words)
            assert share <= share_range(len(words), script)[1] + 1 / len(words)


@pytest.mark.parametrize("case", cases("prompt_and_extract.json", "expected_prompt"))
def test_a_prompt_is_that_of_the_scripts(case: dict) -> None:
    found = mask_prompt(case["masked_text"], case["masked_example"], case["example"], NAMES[case["variant"]])
    assert found == case["expected_prompt"]
    assert instruction_of(case["full_prompt"]) == case["expected_instruction"]


@pytest.mark.parametrize("case", cases("prompt_and_extract.json", "expected_pseudo_input"))
def test_what_was_filled_in_is_the_last_output(case: dict) -> None:
    assert filled_text(case["prompt"], case["continuation"]) == case["expected_pseudo_input"]


@pytest.mark.parametrize("case", cases("pairing.json"))
def test_each_exemplar_is_filled_beside_each_other_one(case: dict) -> None:
    count, script = case["n_exemplars"], SCRIPTS[NAMES[case["variant"]]]
    found = list(pairs(count, script, random.Random(0), rounds=case["retry"]))
    assert len(found) == case["expected_num_candidates"]
    assert all(one != other for one, other in found)
    if "expected_pairs_masked_vs_example" in case:
        assert [[f"x{one}", f"x{other}"] for one, other in found] == case["expected_pairs_masked_vs_example"]
    if most := case.get("max_partners_per_sample"):
        assert {sum(one == at for one, _ in found) for at in range(count)} == {min(most, count - 1)}


def test_a_round_is_a_plain_repetition() -> None:
    once = list(pairs(4, SCRIPTS["llama2"], random.Random(0)))
    assert list(pairs(4, SCRIPTS["llama2"], random.Random(0), rounds=3)) == once * 3


@pytest.mark.parametrize("case", cases("filter.json"))
def test_a_pseudo_input_is_kept_or_rejected_as_by_the_scripts(case: dict) -> None:
    kept, reason = filtered(case["inputs"], case["category"], NAMES[case["variant"]], STUB)
    assert (kept is not None) == case["expected_kept"] == (not reason)
    assert kept == case["expected_inputs"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["one two three"], "has 1 demonstrations, but masked ones are filled beside another"),
        (
            ["one two", "17 18 19", "这是一个句子"],
            "masking leaves nothing to be filled, because none of its 3",
        ),
        (["one two", "17 18 19", "one two three"], "because 1 of its 3 demonstrations"),
    ],
)
def test_exemplars_of_which_nothing_can_be_made_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_exemplars("t", texts)
    check_exemplars("t", ["one two", "one two three", "this one too"])
