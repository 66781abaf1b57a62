"""The blockwise cross-entropy against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from everlearn.training import losses


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained_head", [False, True])
def test_value_and_gradients_are_those_of_plain_cross_entropy(monkeypatch, bias: bool, trained_head: bool) -> None:
    monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", 50 * 7)  # blocks of seven positions, the last one shorter
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, requires_grad=True)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(trained_head)
    targets = torch.randint(0, 50, (23,))
    inputs = [hidden, *(head.parameters() if trained_head else [])]
    expected = cross_entropy(head(hidden), targets, reduction="sum")
    found, each = losses.answer_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(each, cross_entropy(head(hidden), targets, reduction="none"))
    slopes = zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True)
    for mine, theirs in slopes:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_weight_is_a_factor_of_the_targets_own_term() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(9, 16, requires_grad=True), torch.nn.Linear(16, 50)
    targets, weights = torch.randint(0, 50, (9,)), torch.rand(9)
    expected = (weights * cross_entropy(head(hidden), targets, reduction="none")).sum()
    found, each = losses.answer_cross_entropy(hidden, head, targets, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close((weights * each).sum(), expected.detach(), rtol=1e-6, atol=0)
    mine, theirs = (torch.autograd.grad(loss, [hidden, head.weight, head.bias]) for loss in (found, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_autocast_computes_the_logits_in_bfloat16_and_sums_in_float32() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(40, 16, requires_grad=True), torch.nn.Linear(16, 50, bias=False)
    targets = torch.randint(0, 50, (40,))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = losses.answer_cross_entropy(hidden, head, targets)
        expected = cross_entropy(head(hidden).float(), targets, reduction="sum")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    exact, _ = losses.answer_cross_entropy(hidden, head, targets)
    assert found.item() != exact.item()
    mine, theirs = (torch.autograd.grad(loss, hidden)[0] for loss in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-2)


def test_the_loss_of_a_certain_answer_is_zero_and_of_an_even_guess_the_logarithm_of_the_vocabulary() -> None:
    head = torch.nn.Linear(2, 4, bias=False)
    head.weight.data = torch.tensor([[100.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    certain, _ = losses.answer_cross_entropy(torch.tensor([[1.0, 0.0]]), head, torch.tensor([0]))
    even, _ = losses.answer_cross_entropy(torch.tensor([[0.0, 1.0]]), head, torch.tensor([2]))
    assert certain.item() == pytest.approx(0.0)
    assert even.item() == pytest.approx(torch.log(torch.tensor(4.0)).item())


def squared(scores: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """A formula with a gradient in every logit that no softmax has."""
    return ((scores - fixed) ** 3).sum(-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained_head", [False, True])
def test_a_divergence_from_another_view_is_that_of_all_logits_at_once(monkeypatch, bias: bool, trained_head: bool):
    monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", 50 * 7)
    torch.manual_seed(0)
    hidden, other = torch.randn(23, 16, requires_grad=True), torch.randn(23, 16)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(trained_head)
    fixed = torch.nn.Linear(16, 50, bias=bias)
    expected = squared(head(hidden), fixed(other).detach()).sum()
    found = losses.answer_divergence(hidden, head, other, losses.head_of(fixed), squared)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    inputs = [hidden, *(head.parameters() if trained_head else [])]
    slopes = zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True)
    for mine, theirs in slopes:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    logits, others = head(hidden), fixed(other).detach()
    torch.testing.assert_close(losses.answer_divergence(logits, None, others, None, squared), expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("weights", [None, torch.linspace(0.5, 2, 23)])
def test_terms_that_share_logits_have_value_and_gradients_of_those_that_do_not(bias, trained_head, weights) -> None:
    torch.manual_seed(0)
    hidden, other = torch.randn(23, 16, requires_grad=True), torch.randn(23, 16)
    head = torch.nn.Linear(16, 50, bias=bias).requires_grad_(trained_head)
    targets, fixed = torch.randint(0, 50, (23,)), losses.head_of(torch.nn.Linear(16, 50, bias=bias))
    kept = (torch.randn(23, 50),)
    found, _, logits = losses.cross_entropy_and_logits(hidden, head, targets, weights)
    expected, _ = losses.answer_cross_entropy(hidden, head, targets, weights)
    torch.testing.assert_close(logits, head(hidden).detach())
    found = found + losses.answer_divergence(hidden, head, other, fixed, squared, logits)
    found = found + losses.answer_match(hidden, head, kept, squared, logits)
    expected = expected + losses.answer_divergence(hidden, head, other, fixed, squared)
    expected = expected + losses.answer_match(hidden, head, kept, squared)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    inputs = [hidden, *(head.parameters() if trained_head else [])]
    slopes = zip(torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True)
    for mine, theirs in slopes:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_logits_of_more_than_a_block_are_not_held(monkeypatch) -> None:
    monkeypatch.setitem(losses.BLOCK_ELEMENTS, "cpu", 50 * 7)
    head, held = torch.nn.Linear(16, 50), {}
    for count in (0, 7, 8):
        targets = torch.zeros(count, dtype=torch.long)
        held[count] = losses.cross_entropy_and_logits(torch.randn(count, 16), head, targets)[2] is not None
    assert held == {0: False, 7: True, 8: False}
