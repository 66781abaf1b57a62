"""Losses and gradients of a batch are the sums of those of its rows, each computed alone by the model itself."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch.nn.functional import cross_entropy

from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.packing import Packing
from everlearn.training.rows import EncodedRow
from tests.odd_models import ALL, SWITCH, make_kind, make_odd

LENGTHS = (5, 12, 12, SWITCH - 1, SWITCH, SWITCH + 1, SWITCH + 2, 70)
DOGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def rows_of(*lengths: int) -> list[EncodedRow]:
    draw = random.Random(0)
    return [EncodedRow(tuple(draw.randrange(4, 90) for _ in range(n)), max(1, n - 4)) for n in lengths]


def gradient(model) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in model.parameters()])


def alone(model, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the losses and of the gradients, by the plain forward pass over one row at a time."""
    total, grads = torch.zeros(()), torch.zeros(())
    for row in rows:
        fresh = copy.deepcopy(model)
        logits = fresh(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, row.prompt_length - 1 : -1]
        loss = cross_entropy(logits.float(), torch.tensor(row.ids[row.prompt_length :]), reduction="sum")
        loss.backward()
        total, grads = total + loss.detach(), grads + gradient(fresh)
    return total, grads


def together(model, rows, most_tokens) -> tuple[torch.Tensor, torch.Tensor, list]:
    fresh = copy.deepcopy(model)
    answer_loss = AnswerLoss(fresh, pad_id=3)
    total = torch.zeros(())
    with answer_loss.packed_where_equal(rows):
        parts = answer_loss.micro_batches(rows, most_tokens)
        for part in parts:
            loss = answer_loss(part)
            loss.backward()
            total = total + loss.detach()
    return total, gradient(fresh), parts


@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradient_of_a_batch_are_the_sums_over_its_rows_alone(name):
    model, rows = make_odd(name), rows_of(*LENGTHS)
    loss, grads = alone(model, rows)
    found, found_grads, parts = together(model, rows, 4096)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    assert (found_grads - grads).norm() <= 1e-5 * grads.norm()
    counted = [row for part in parts for row in (part.rows if isinstance(part, Packing) else part)]
    assert sorted(counted, key=hash) == sorted(rows, key=hash)


def test_rows_before_the_switch_stay_packed_in_parts_that_fit():
    model, rows = make_odd("phi3"), rows_of(*LENGTHS)
    found, _, parts = together(model, rows, 60)
    assert len(parts) > 4
    torch.testing.assert_close(found, alone(model, rows)[0], rtol=1e-5, atol=0)
    packed = [part for part in parts if isinstance(part, Packing)]
    assert sum(len(part.rows) for part in packed) == sum(length <= SWITCH for length in LENGTHS)


def test_a_mask_that_the_model_makes_itself_is_not_lost():
    model, rows = make_kind("doge", intermediate_size=64, **DOGE), rows_of(5, 12, 30)
    loss, grads = alone(model, rows)  # at first all of its mask is zero, and only the gradient shows it
    found, found_grads, _ = together(model, rows, 4096)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
    assert (found_grads - grads).norm() <= 1e-5 * grads.norm()
