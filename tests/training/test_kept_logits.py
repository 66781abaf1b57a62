"""Logits kept by row: the recorded distances, block by block or at once, and those of a model as it predicts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy

from everlearn.data.prompts import VanillaTemplate
from everlearn.models.loading import load_model
from everlearn.recipe import TrainingConfig
from everlearn.training import losses
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.kept_logits import distance, logits_by_row
from everlearn.training.losses import answer_match, largest_logits
from everlearn.training.rows import encode_rows
from tests.methods.contexts import number_stream, tiny_config


def golden(golden_dir: Path, variant: str) -> list[dict]:
    cases = json.loads((golden_dir / "baselines" / "der_loss.json").read_text())["cases"]
    found = [case for case in cases if case["variant"] == variant]
    assert found
    return found


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def all_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.arange(logits.shape[1]).expand_as(logits)


@pytest.mark.parametrize("variant", ["der", "derpp"])
def test_the_recorded_losses_of_a_classifier(golden_dir: Path, variant: str) -> None:
    for case in golden(golden_dir, variant):
        weight = tensor(case["W"]).requires_grad_()
        kept = tensor(case["buffer_logits"])
        loss = cross_entropy(tensor(case["x"]) @ weight.T, torch.tensor(case["y"]))
        loss = loss + case["alpha"] * distance(tensor(case["buffer_x"]) @ weight.T, all_of(kept), kept).mean()
        if variant == "derpp":
            second = tensor(case["second_buffer_x"]) @ weight.T
            loss = loss + case["beta"] * cross_entropy(second, torch.tensor(case["second_buffer_y"]))
        loss.backward()
        assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-6)
        assert torch.allclose(weight.grad, tensor(case["expected_grad_W"]), atol=1e-6)
        stored = tensor(case["x"]) @ weight.detach().T
        ids, logits = largest_logits(stored, None, 0)
        assert torch.allclose(
            torch.zeros_like(stored).scatter(1, ids.long(), logits.double()),
            tensor(case["expected_logits_stored_for_x"]),
            atol=1e-4,
        )


def test_the_recorded_losses_of_tokens(golden_dir: Path) -> None:
    for case in golden(golden_dir, "derpp_tokens"):
        logits = tensor(case["student_logits"]).requires_grad_()
        labels, new = torch.tensor(case["labels"])[:, 1:], case["n_new_rows"]
        shifted = logits[:, :-1]
        is_answer = labels != -100
        ce_new = cross_entropy(shifted[:new][is_answer[:new]], labels[:new][is_answer[:new]])
        memory, wanted = shifted[new:][is_answer[new:]], labels[new:][is_answer[new:]]
        kept = tensor(case["stored_logits_of_memory_rows"])[:, :-1][is_answer[new:]]
        ce_memory = cross_entropy(memory, wanted)
        mse = distance(memory, all_of(kept), kept).mean()
        loss = ce_new + case["alpha"] * mse + case["beta"] * ce_memory
        loss.backward()
        for name, value in (("ce_new", ce_new), ("ce_memory", ce_memory), ("mse", mse), ("loss", loss)):
            assert value.item() == pytest.approx(case[f"expected_{name}"], abs=1e-6)
        assert torch.allclose(logits.grad, tensor(case["expected_grad_student"]), atol=1e-6)
        squared = distance(memory, all_of(kept), kept, kind="squared_l2").mean()
        assert squared.item() == pytest.approx(case["expected_squared_l2_per_token"], abs=1e-6)


def test_the_recorded_distances_over_the_largest_logits(golden_dir: Path) -> None:
    for case in golden(golden_dir, "derpp_topk_mse"):
        logits = tensor(case["student_logits"]).requires_grad_()
        ids, kept = largest_logits(tensor(case["teacher_logits"]), None, case["top_k"])
        assert ids.sort(1).values.tolist() == case["expected_kept_ids_sorted"]
        mse = distance(logits, ids, kept).mean()
        mse.backward()
        assert mse.item() == pytest.approx(case["expected_mse"], abs=1e-6)
        assert torch.allclose(logits.grad, tensor(case["expected_grad_student"]), atol=1e-6)


def test_a_constant_added_to_all_logits_is_nothing_for_the_divergence_alone() -> None:
    scores, ids = torch.randn(3, 9), torch.tensor([[0, 4, 7]] * 3)
    kept = scores.gather(1, ids) + 2.0
    assert distance(scores, ids, kept, kind="kl").abs().max() < 1e-6
    assert distance(scores, ids, kept).min() == pytest.approx(4.0)
    assert distance(scores, ids, kept * 2, kind="kl").min() > 0


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_a_match_is_computed_in_blocks_with_the_value_and_gradients_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", 60)
    torch.manual_seed(0)
    head = Linear(4, 30)
    hidden = torch.randn(7, 4, requires_grad=True)
    ids, kept = largest_logits(torch.randn(7, 4), head, 5)
    found = answer_match(hidden, head, (ids, kept), partial(distance, kind=kind))
    expected = distance(head(hidden), ids, kept, kind=kind).sum()  # type: ignore[arg-type]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    moved = (hidden, head.weight, head.bias)
    for one, other in zip(torch.autograd.grad(found, moved), torch.autograd.grad(expected, moved), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("is_packed", [True, False])
def test_what_is_kept_of_rows_are_the_largest_logits_that_predict_their_answers(
    is_packed: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_packed:
        monkeypatch.setattr(AnswerLoss, "_agrees", lambda *_: False)
    loaded = load_model(tiny_config(tiny_model, "full"))
    config = TrainingConfig(micro_batch_tokens=64, precision="float32")
    instances = number_stream(rows=5).tasks[0].train
    rows = encode_rows(instances, VanillaTemplate(), loaded.tokenizer, config, loaded.context_length)
    kept = list(logits_by_row(loaded, rows, config, 6)(2))
    assert len(kept) == 3
    for row, one in zip(rows[2:], kept, strict=True):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1]
        top = logits.topk(6, dim=1)
        assert torch.equal(one["ids"].long(), top.indices)
        assert torch.allclose(one["logits"], top.values, atol=1e-4)


def test_the_recorded_divergence_over_the_largest_logits(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "baselines" / "kd_loss.json").read_text())["cases"]
    (case,) = (one for one in cases if one["variant"] == "forward_kl_topk_renormalised")
    student, teacher = tensor(case["student_logits"]).requires_grad_(), tensor(case["teacher_logits"])
    ids = teacher.topk(case["top_k"]).indices
    loss = distance(student, ids, teacher.gather(1, ids), kind="kl").mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-6)
    torch.testing.assert_close(student.grad, tensor(case["expected_grad_student"]), rtol=0, atol=1e-6)
