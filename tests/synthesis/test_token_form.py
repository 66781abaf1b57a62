"""LAMOL's form with tokens of its own: the recorded sequences, what is accepted, the weighted loss of whole rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy

from everlearn.data.instance import Instance, Turn
from everlearn.generation.protocol import Completion
from everlearn.models.added_tokens import add_tokens, tokens_of, with_tokens
from everlearn.recipe import ModelConfig
from everlearn.synthesis.token_form import TokenForm, TokenTemplate, question_and_answer_ids, question_ids
from everlearn.training.influence import Seen
from everlearn.training.marked_rows import MarkedRows, weighted_sum, weights_of
from everlearn.training.rows import EncodedRow
from tests.data.byte_tokenizer import make_byte_tokenizer, read


def golden(golden_dir: Path, part: str) -> list[dict]:
    cases = json.loads((golden_dir / "baselines" / "lamol.json").read_text())["cases"]
    return [case for case in cases if case["part"] == part]


def test_the_recorded_sequences(golden_dir: Path) -> None:
    for case in golden(golden_dir, "encode"):
        ids, longest, answer = case["ids"], case["max_len"], case["answer"]
        after = [ids["sep"]] * case["use_separator"] + case["question"]
        prompt, whole = (
            question_ids([], case["context"], after, ids["ans"], longest - 1 - n) for n in (0, len(answer))
        )
        assert prompt == case["expected_prompt"]
        assert whole is not None
        assert [*whole, *answer] == case["expected_qa_input"]
        ignored = [ids["ignored_label"]] * (len(whole) - 1)
        assert [*ignored, *answer, ids["eos"]] == case["expected_qa_target"]
        assert [ids["gen"], *whole, *answer] == case["expected_lm_input"]
        assert [*whole, *answer, ids["eos"]] == case["expected_lm_target"]
    assert question_ids([1], [2], [3], 9, 2) is None


def test_the_recorded_acceptance(golden_dir: Path) -> None:
    for case in golden(golden_dir, "accept"):
        ids = case["ids"]
        separator = ids["sep"] if case["use_separator"] else None
        for generated, expected in zip(case["generated"], case["expected"], strict=True):
            found = question_and_answer_ids(generated[1:], ids["ans"], ids["eos"], separator)
            assert (found is None) == (expected is None)
            if found is not None:
                question, answer = [*found[0], ids["ans"]], found[1]
                assert question + answer == expected["qa_input"]
                assert [-1] * (len(question) - 1) + [*answer, ids["eos"]] == expected["qa_target"]


def test_the_recorded_losses(golden_dir: Path) -> None:
    for case in golden(golden_dir, "loss"):
        qa, lm = (torch.tensor(case[f"{kind}_logits"], dtype=torch.float64) for kind in ("qa", "lm"))
        targets = [torch.tensor(case[f"{kind}_target"]) for kind in ("qa", "lm")]
        qa.requires_grad_()
        lm.requires_grad_()
        ce = cross_entropy(qa[targets[0] != -1], targets[0][targets[0] != -1])
        wanted = targets[1][targets[1] != -1]
        weights = weights_of(wanted, case["answer_token_id"], int(case["answer_token_weight"]))
        text = weighted_sum(lm[targets[1] != -1], None, wanted, weights) / weights.sum()
        loss = ce + case["lm_lambda"] * text
        loss.backward()
        assert ce.item() == pytest.approx(case["expected_qa_loss"], abs=1e-6)
        assert case["lm_lambda"] * text.item() == pytest.approx(case["expected_weighted_lm_loss"], abs=1e-6)
        assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-6)
        for logits, kind in ((qa, "qa"), (lm, "lm")):
            assert torch.allclose(logits.grad, torch.tensor(case[f"expected_grad_{kind}"]).double(), atol=1e-6)


def test_the_mark_counts_in_the_rows_of_its_group_alone() -> None:
    torch.manual_seed(0)
    head, states = Linear(3, 9), torch.randn(5, 3)
    rows = (EncodedRow((1, 7, 2), 1, "whole"), EncodedRow((1, 7, 7, 3), 1, "own"))
    influence = MarkedRows("whole", 7, 5, 0.5)
    assert influence.units(rows) == 6
    row_of, targets = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([7, 2, 7, 7, 3])
    seen = Seen(rows, row_of, targets, states, head, torch.zeros(2), None, lambda view: (states, None))
    each = cross_entropy(head(states[:2]), targets[:2], reduction="none")
    assert influence.term(seen).item() == pytest.approx(0.5 * (5 * each[0] + each[1]).item(), rel=1e-5)


def test_both_forms_of_a_row_and_what_is_cut() -> None:
    config = with_tokens(ModelConfig(), ["__ans__", "__t__"])
    tokenizer = add_tokens(make_byte_tokenizer(), config)
    template = TokenTemplate()
    row = Instance("Do __ans__.", "one two", "yes", "t")
    question = "Do __ans__.\n\none two"
    whole = f"<s>{question}__ans__"
    mark = tokenizer.convert_tokens_to_ids("__ans__")
    prompt = template.prompt_ids(row, tokenizer)
    assert read(tokenizer, prompt) == whole
    assert prompt.count(mark) == 1, "text of the data is no token"
    for most in range(len(prompt), len(prompt) - 8, -1):
        assert read(tokenizer, template.prompt_ids(row, tokenizer, most)) == f"<s>{question[: most - 2]}__ans__"
    for most in (3, 8, len(prompt) - 8):  # no room for the whole instruction: what is asked for stays
        assert read(tokenizer, template.prompt_ids(row, tokenizer, most)) == f"<s>{question[: most - 2]}__ans__"
        assert template.prompt_ids(row, tokenizer, most).count(mark) == 1
    old = Instance("", "two?", "2", "t", history=(Turn("user", "one?"), Turn("assistant", "1")))
    assert read(tokenizer, template.prompt_ids(old, tokenizer)) == "<s>one?__ans__1</s><s>two?__ans__"
    form = TokenForm(template, {"t": "__t__"}, 100)
    ids = form.target_ids(row, tokenizer)
    assert read(tokenizer, form.prompt_ids(row, tokenizer) + ids) == f"<s>__t__{question}__ans__yes</s>"
    assert form.read(Completion("", tuple(ids[:-1]), "eos"), tokenizer) == (question, "yes")
    assert form.read(Completion("", tuple(ids[:3]), "eos"), tokenizer) is None
    for limit in range(len(ids) + 2, 15, -1):
        cut = TokenForm(template, {"t": "__t__"}, limit)
        lost = len(ids) + 2 - limit
        assert cut.fits(row, tokenizer) == (lost <= 7)
        if lost <= 7:
            expected = f"{question[: len(question) - lost]}__ans__yes</s>"
            assert read(tokenizer, cut.target_ids(row, tokenizer)) == expected


def test_tokens_belong_to_no_recipe_and_to_one_method_alone() -> None:
    plain = ModelConfig()
    extended = with_tokens(plain, ["__ans__"])
    assert tokens_of(extended) == ("__ans__",)
    assert extended.model_dump() == plain.model_dump()
    assert tokens_of(with_tokens(extended, [])) == ()
    assert with_tokens(extended, []) == plain
