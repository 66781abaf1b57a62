"""The packed loss against Transformers' own, for four architectures, adapters and full tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everlearn.models import loading
from everlearn.models.heads import Heads
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.attention import packed_attention_on
from everlearn.training.classes import ClassLoss, Headed
from everlearn.training.phase import HeadTraining
from tests.tiny_models import ARCHITECTURES, save_tiny_model
from tests.training.rows_of_tokens import random_rows

ROWS = random_rows(20)
COUNT = sum(row.answer_count for row in ROWS)


def loaded_model(folder: Path, architecture: str, tuning: str, **settings):
    save_tiny_model(folder, architecture, tied=tuning == "full")
    lora = LoraConfig(targets="all-linear", dropout=0.0)
    config = ModelConfig(base=str(folder), tuning=tuning, lora=lora, device="cpu", **{"dtype": "float32", **settings})
    model = loading.load_model(config, trainable=True).model
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    return model.train()


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_equal_the_plain_computation(tmp_path, architecture: str, tuning: str) -> None:
    model = loaded_model(tmp_path, architecture, tuning)
    answer_loss = AnswerLoss(model, pad_id=3)
    plain = model(**answer_loss.padded(ROWS), num_items_in_batch=COUNT).loss
    plain.backward()
    expected = gradients(model)
    with answer_loss.packed_where_equal(ROWS) as is_packed:
        assert is_packed
        parts = answer_loss.micro_batches(ROWS, 300)
        assert len(parts) > 1
        packed = sum(answer_loss(part) / COUNT for part in parts)
        packed.backward()
    assert not answer_loss.is_packed
    torch.testing.assert_close(packed, plain, rtol=1e-5, atol=0)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * gradient.abs().max().item() + 1e-9)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_state_of_raw_text_is_seen_on_both_paths(tmp_path, architecture: str, is_packed: bool) -> None:
    model = loaded_model(tmp_path, architecture, "lora")
    texts = [replace(row, prompt_length=0, is_text=True) for row in ROWS[:4]]
    rows = [*ROWS[4:], *texts]
    answer_loss = AnswerLoss(model, pad_id=3)
    found = {}
    with answer_loss.packed_where_equal(rows):
        answer_loss.is_packed = is_packed
        for part in answer_loss.micro_batches(rows, 400):
            _, seen = answer_loss.seen(part, None)
            there = [row for row in seen.rows if row.is_text]
            if seen.text is None:
                assert not there
                continue
            assert seen.text.requires_grad
            for row, states in zip(there, seen.text.split([len(row.ids) for row in there]), strict=True):
                found[row.ids] = states
    assert len(found) == len(texts)
    for row in texts:
        output = model(input_ids=torch.tensor([row.ids]), output_hidden_states=True)
        torch.testing.assert_close(found[row.ids], output.hidden_states[-1][0], rtol=1e-4, atol=1e-5)


def test_dropout_does_not_rule_packing_out(tmp_path) -> None:
    model = loaded_model(tmp_path, "llama", "full")
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda layer, _, out: torch.nn.functional.dropout(out, 0.5, layer.training))
    with AnswerLoss(model, pad_id=3).packed_where_equal(ROWS) as is_packed:
        assert is_packed
        assert model.training


def test_a_loss_is_computed_in_the_number_format_of_the_stage(tmp_path) -> None:
    model = loaded_model(tmp_path, "llama", "full")
    exact, rounded = (AnswerLoss(model, pad_id=3, autocast=form)(ROWS) for form in (None, torch.bfloat16))
    assert exact != rounded
    torch.testing.assert_close(exact, rounded, rtol=1e-2, atol=0)


def test_recomputed_activations_give_the_same_gradients(tmp_path) -> None:
    model = loaded_model(tmp_path, "llama", "lora")
    answer_loss = AnswerLoss(model, pad_id=3)
    with answer_loss.packed_where_equal(ROWS) as is_packed:
        assert is_packed
        (part,) = answer_loss.micro_batches(ROWS, 1 << 20)
        answer_loss(part).backward()
        expected = gradients(model)
        answer_loss.inner.gradient_checkpointing_enable({"use_reentrant": False})
        answer_loss(part).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize(("softcap", "attention_softcap"), [(0.5, None), (30.0, None), (None, 50.0)])
def test_a_model_that_caps_logits_or_scores_is_trained_on_the_plain_path(softcap, attention_softcap) -> None:
    from transformers import AutoModelForCausalLM, Gemma2Config

    settings = Gemma2Config(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        final_logit_softcapping=softcap,
        attn_logit_softcapping=attention_softcap,
    )
    model = AutoModelForCausalLM.from_config(settings)
    answer_loss = AnswerLoss(model, pad_id=3)
    expected = model(**answer_loss.padded(ROWS), num_items_in_batch=COUNT).loss
    with answer_loss.packed_where_equal(ROWS) as is_packed:
        assert not is_packed
        parts = answer_loss.micro_batches(ROWS, 300)
        assert len(parts) > 1
        found = sum(answer_loss(part) / COUNT for part in parts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_window_shorter_than_a_row_rules_packing_out(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, MistralConfig

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    longest = max(len(row.ids) for row in ROWS)
    for window, is_packed in ((longest - 1, False), (longest, True)):
        settings = MistralConfig(vocab_size=120, num_key_value_heads=2, sliding_window=window, **small)
        answer_loss = AnswerLoss(AutoModelForCausalLM.from_config(settings), pad_id=3)
        with answer_loss.packed_where_equal(ROWS) as found:
            assert found is is_packed


def test_a_model_with_memory_of_another_kind_is_trained_on_the_plain_path() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    settings = MambaConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, state_size=4)
    answer_loss = AnswerLoss(AutoModelForCausalLM.from_config(settings), pad_id=3)
    with answer_loss.packed_where_equal(ROWS) as is_packed:
        assert not is_packed
        assert torch.isfinite(answer_loss(ROWS[:3]))


def test_padded_batches_hold_no_more_logits_than_memory_has_room_for(tmp_path, monkeypatch) -> None:
    from everlearn.training import answer_loss as room

    model = loaded_model(tmp_path, "llama", "full")
    answer_loss = AnswerLoss(model, pad_id=3)
    vocabulary = model.lm_head.weight.shape[0]
    whole = answer_loss.micro_batches(ROWS, 1 << 15)
    expected = sum(answer_loss(part) for part in whole)
    monkeypatch.setattr(room, "MOST_LOGITS", 128 * vocabulary)
    parts = answer_loss.micro_batches(ROWS, 1 << 15)
    assert len(whole) == 1 < len(parts)
    assert all(len(part) == 1 or len(part) * max(len(row.ids) for row in part) <= 128 for part in parts)
    torch.testing.assert_close(sum(answer_loss(part) for part in parts), expected, rtol=1e-5, atol=0)
    tasks = (("a", ("x", "y")),)
    headed = Headed(model, Heads("cosine", model.config.hidden_size, tasks), HeadTraining("cosine", tasks, ("a",)))
    of_classes = ClassLoss(headed, model, pad_id=3)
    assert len(of_classes.micro_batches(ROWS, 1 << 15)) == 1, "heads need no logits of the vocabulary"


def hybrid_config(kind: str):
    from transformers import AutoConfig

    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    own = {
        "lfm2": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
        "falcon_h1": {
            "num_hidden_layers": 2,
            "head_dim": 8,
            "mamba_d_ssm": 32,
            "mamba_n_heads": 4,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
        },
        "qwen3_5_text": {
            "num_hidden_layers": 4,
            "head_dim": 8,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    }[kind]
    return AutoConfig.for_model(kind, vocab_size=120, **small, **own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lfm2", "falcon_h1", "qwen3_5_text"])
def test_layers_that_mix_tokens_by_other_means_than_attention_rule_packing_out(kind, dtype) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(hybrid_config(kind), dtype=dtype)
    with AnswerLoss(model, pad_id=3).packed_where_equal(ROWS) as is_packed:
        assert not is_packed


def test_a_model_that_keeps_the_packing_from_its_attention_is_trained_on_the_plain_path() -> None:
    """Its rows would see each other and what comes after; in bfloat16 the losses of an untrained model agree."""
    from transformers import AutoModelForCausalLM, StableLmConfig

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        StableLmConfig(vocab_size=120, num_key_value_heads=2, **small), dtype=torch.bfloat16
    )
    with AnswerLoss(model, pad_id=3).packed_where_equal(ROWS) as is_packed:
        assert not is_packed


def test_the_attention_is_as_before_when_training_breaks_off(tmp_path) -> None:
    model = loaded_model(tmp_path, "llama", "full")
    before = model.config._attn_implementation
    seen = []

    def break_off() -> None:
        with AnswerLoss(model, pad_id=3).packed_where_equal(ROWS):
            seen.append(model.config._attn_implementation)
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert seen[0] != before == model.config._attn_implementation


def test_ordinary_batches_pass_through_while_packing_is_on(tmp_path) -> None:
    model = loaded_model(tmp_path, "gpt_neox", "full")
    batch = AnswerLoss(model, pad_id=3).padded(ROWS)
    expected = model(**batch).loss
    with packed_attention_on(model):
        torch.testing.assert_close(model(**batch).loss, expected)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_logits_that_are_seen_are_those_of_the_states_and_change_no_loss(tmp_path, tuning: str) -> None:
    model = loaded_model(tmp_path, "llama", tuning)
    answer_loss, weights = AnswerLoss(model, pad_id=3), [0.5 + at for at in range(len(ROWS))]
    runs = []
    with answer_loss.packed_where_equal(ROWS):
        (part,) = answer_loss.micro_batches(ROWS, 1 << 20)
        for keeps in (False, True):
            total, seen = answer_loss.seen(part, weights, keeps_logits=keeps)
            assert (seen.logits is None) != keeps
            if seen.logits is not None:
                torch.testing.assert_close(seen.logits, seen.head(seen.states).detach())
                assert torch.equal(seen.logits_at(torch.tensor([2, 0])), seen.logits[[2, 0]])
            total.backward()
            runs.append((total.detach(), seen.losses, gradients(model)))
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-4)
