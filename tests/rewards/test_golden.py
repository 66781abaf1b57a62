"""The published prompts, rewards, advantages, KL estimates, directions and stand-in metrics of R1-T1."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from everlearn.data.chat_prompts import ChatTemplate
from everlearn.data.instance import Instance
from everlearn.data.translation import asked, directions, group_of, quiz
from everlearn.data.walk_prompts import WalkTemplate
from everlearn.data.walks import OPENING, answer_in, is_well_formed
from everlearn.rewards.reward import format_reward, group_advantages, quality_reward, scored_answer, token_kl
from everlearn.rewards.texts import bleu, chrf, exact

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


HEADERS = ("Assistant:", "<|im_start|>assistant", "助手<think>")


def response_in(sequence: str) -> tuple[str, bool]:
    """What the published scorer takes for the response, and whether it has found a header."""
    for header in HEADERS:
        if header in sequence:
            response = sequence.partition(header)[2]
            return (OPENING if header.endswith(OPENING) else "") + response, True
    return sequence, False


@pytest.fixture
def cases(golden_dir: Path) -> Any:
    return lambda name: json.loads((golden_dir / "r1_t1" / f"{name}.json").read_text(encoding="utf-8"))


def test_rewards(cases: Any) -> None:
    for case in cases("reward"):
        expected, (response, found) = case["expected"], response_in(case["sequence"])
        assert found == expected["header_found"], case["name"]
        assert (answer_in(response) if found else None) == expected["answer"], case["name"]
        assert is_well_formed(response) == expected["format_ok"], case["name"]
        scored = scored_answer(response) if found else None
        quality = quality_reward(case["quality"]) if scored else 0.0
        assert format_reward(response) == pytest.approx(expected["format_score"], abs=1e-9), case["name"]
        assert quality == pytest.approx(expected["quality_score"], abs=1e-9), case["name"]
        assert format_reward(response) + quality == pytest.approx(expected["total"], abs=1e-9), case["name"]


def test_advantages(cases: Any) -> None:
    for case in cases("advantage"):
        rewards = torch.tensor(case["rewards"])
        for name, epsilon in (("verl_eps_1e6", 1e-6), ("trl_eps_1e4", 1e-4)):
            if case[name] is not None:
                found = group_advantages(rewards, len(rewards), epsilon).tolist()
                assert found == pytest.approx(case[name], rel=1e-5, abs=1e-5)


def test_a_group_of_one_has_mean_0_and_deviation_1() -> None:
    assert group_advantages(torch.tensor([0.7, 0.2]), 1).tolist() == pytest.approx([0.7, 0.2], abs=1e-5)


def test_kl(cases: Any) -> None:
    for case in cases("kl"):
        both = torch.tensor(case["logp"]), torch.tensor(case["ref_logp"])
        assert token_kl(*both, clip=None).item() == pytest.approx(case["k3"], rel=1e-5, abs=1e-6)
        assert token_kl(*both).item() == pytest.approx(case["k3_clipped"], rel=1e-5, abs=1e-6)


def test_directions(cases: Any) -> None:
    case = cases("eval_pairs")
    found = directions(case["languages"], case["pivots"])
    assert sorted(f"{one}-{other}" for one, other in found) == case["pairs_sorted"]
    assert (len(found), len(set(found))) == (case["count"], case["distinct"])
    groups = Counter(group_of(*pair, case["seen"]) for pair in found)
    assert {group: groups[group] for group in case["groups"]} == case["groups"]


def test_the_published_languages_have_78_directions() -> None:
    tags = "ar de es fr it ja kr pt ru th tr en zh nl pl ms id el cs vi tl".split()
    assert len(directions(tags)) == 78


def test_prompts(cases: Any, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = CHATML
    template = WalkTemplate(ChatTemplate(tokenizer), published=True)
    for case in cases("prompts"):
        row = Instance(asked(case["src_lang"], case["tgt_lang"]), case["source"], "x", "t")
        assert quiz(row) == case["quiz"]
        assert template.text(row) == case["qwen_instruct"]


@pytest.mark.parametrize(("name", "metric"), [("exact", exact), ("chrf", chrf), ("bleu", bleu)])
def test_stand_in_metrics(cases: Any, name: str, metric: Any) -> None:
    if name == "bleu" and not importlib.util.find_spec("sacrebleu"):
        pytest.skip("sacrebleu is not installed")
    for case in cases("standin_metrics"):
        assert metric(case["hyp"], case["ref"]) == pytest.approx(case[name], abs=1e-6), case


def test_chrf_is_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    texts = ["a", "", "ab", "abc def", "der Hund bellt", "die Hunde bellten laut", "今天下雨。", "今天 下雪。", "  "]
    for one in texts:
        for other in texts:
            expected = sacrebleu.sentence_chrf(one, [other]).score / 100
            assert chrf(one, other) == pytest.approx(expected, abs=1e-9), (one, other)
