"""Models of several parts: which compute, which move, and that nobody leaves one out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everlearn.errors import ModelError
from everlearn.generation.engine import make_generator
from everlearn.generation.protocol import Sampling
from everlearn.models import loading
from everlearn.models.adapters import adapter_off
from everlearn.models.features import decoder_of
from everlearn.models.parameters import tuned_parameters
from everlearn.models.state import MOVING, ModelState, Part, Tuning
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training.answer_loss import AnswerLoss
from tests.training.rows_of_tokens import random_rows

IDS = torch.tensor([[1, 5, 9, 12, 7, 8]])


def config_of(folder: Path, **others: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"base": str(folder), "device": "cpu", "dtype": "float32", "lora": LoraConfig(rank=2, dropout=0.0), **others}
    )


def moved(loaded: loading.LoadedModel, seed: int) -> loading.LoadedModel:
    """The model with its moving parts far from where they began."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in tuned_parameters(loaded.model).values():
            weight += 0.3 * torch.randn(weight.shape, generator=draw)
    return loaded


@pytest.fixture
def first(tiny_model: Path, tmp_path: Path) -> Path:
    """A stage's checkpoint."""
    config = config_of(tiny_model)
    loading.save_checkpoint(moved(loading.load_model(config, trainable=True, seed=1), 1), tmp_path / "first")
    return tmp_path / "first"


def logits(loaded: loading.LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(input_ids=IDS).logits


def with_second(tiny_model: Path, first: Path, *, is_active: bool = True) -> loading.LoadedModel:
    """The first stage's adapter frozen beside a fresh one."""
    (part,) = ModelState("x", (Part(first, "adapter"),)).as_part("past", is_active=is_active)
    return loading.load_model(config_of(tiny_model), trainable=True, seed=2, beside=[part])


def test_of_several_adapters_that_compute_only_those_that_are_to_move_can(tiny_model: Path, first: Path) -> None:
    model = with_second(tiny_model, first).model
    free = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert free == set(tuned_parameters(model))
    assert {".default." in name for name in free} == {True}
    assert model.base_model.active_adapters == ["past", MOVING]
    with adapter_off(model):
        assert torch.equal(logits_of(model), logits(loading.load_model(config_of(tiny_model))))
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == free


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_fresh_adapter_beside_a_frozen_one_changes_nothing_and_moved_adds_to_it(tiny_model, first) -> None:
    alone = logits(loading.load_model(config_of(tiny_model), checkpoint=first))
    both = with_second(tiny_model, first)
    torch.testing.assert_close(logits(both), alone)
    assert not torch.allclose(logits(moved(both, 2)), alone, atol=1e-3)


def test_a_shadow_is_at_hand_and_does_not_compute(tiny_model: Path, first: Path) -> None:
    both = with_second(tiny_model, first, is_active=False)
    assert any(".past." in name for name, _ in both.model.named_parameters())
    assert torch.equal(logits(both), logits(loading.load_model(config_of(tiny_model))))


def test_adapters_saved_as_one_compute_the_same_in_plain_peft_and_keep_their_matrices(tiny_model, first, tmp_path):
    from peft import AutoPeftModelForCausalLM

    both = moved(with_second(tiny_model, first), 2)
    tuning = Tuning(ModelState("x"), after="concatenate")
    loading.save_checkpoint(both, tmp_path / "whole", tuning=tuning)
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "whole" / "adapter")
    torch.testing.assert_close(logits_of(plain), logits(both))
    again = loading.load_model(config_of(tiny_model), checkpoint=tmp_path / "whole")
    assert torch.equal(logits(again), logits_of(plain))
    parts = dict(both.model.named_parameters())
    for name, whole in again.model.named_parameters():
        if "lora_" in name:
            other = name.replace(".default.", ".past.")
            assert torch.equal(whole, torch.cat([parts[other], parts[name]], dim=0 if "lora_A" in name else 1))


def test_several_adapters_are_never_saved_as_if_there_were_one(tiny_model, first, tmp_path) -> None:
    with pytest.raises(AssertionError, match="no other computes along"):
        loading.save_checkpoint(with_second(tiny_model, first), tmp_path / "whole")


def test_generation_and_the_packed_loss_see_all_adapters_that_are_active(tiny_model: Path, first: Path) -> None:
    both = moved(with_second(tiny_model, first), 2)
    one = loading.load_model(config_of(tiny_model), checkpoint=first)
    answers = {}
    for name, loaded in (("both", both), ("one", one)):
        (found,) = make_generator(loaded).generate([IDS[0].tolist()], Sampling(max_new_tokens=8))
        plain = loaded.model.generate(IDS, max_new_tokens=8, do_sample=False, pad_token_id=3)
        assert list(found[0].token_ids) == [at for at in plain[0, IDS.shape[1] :].tolist() if at != 2]
        answers[name] = found[0].token_ids
    assert answers["both"] != answers["one"]
    rows, loss = random_rows(6), AnswerLoss(both.model, pad_id=3)
    batch = loss.padded(rows)
    plain = both.model(**batch, num_items_in_batch=1).loss
    with loss.packed_where_equal(rows) as is_packed:
        assert is_packed
        packed = sum(loss(part) for part in loss.micro_batches(rows, 300))
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=0)


def test_a_part_that_an_embedding_would_leave_out_is_refused(tiny_model: Path) -> None:
    from dataclasses import replace

    from peft import PromptTuningConfig, get_peft_model

    base = loading.load_model(config_of(tiny_model))
    prompted = get_peft_model(base.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match=r"stands before its prompts \(PROMPT_TUNING\)"):
        decoder_of(replace(base, model=prompted))
    with prompted.disable_adapter():
        assert decoder_of(replace(base, model=prompted)) is base.model.get_decoder()
