"""How many tokens a training step computes at once: what is likely to fit, and what was found to fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from everlearn.models.loading import LoadedModel, load_model, sizes_of
from everlearn.recipe import ModelConfig, TrainingConfig
from everlearn.training import memory

TOKEN_BYTES = 2 * 32 * 17 * 4  # layers, width, values, bytes of one


@pytest.fixture
def loaded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr(memory, "_found", {})
    return load_model(ModelConfig(base=str(tiny_model), device="cpu", dtype="float32"), trainable=True)


def with_free(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, tokens: int) -> None:
    """Memory for so many tokens, the optimizer's left out."""
    moving = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    free = 2 * tokens * TOKEN_BYTES + 3 * moving
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)


CONFIG = TrainingConfig(precision="float32")


@pytest.mark.parametrize(("room", "expected"), [(1 << 30, 2048), (1000, 1000), (1, 64)])
def test_a_step_is_as_large_as_the_free_memory_is_likely_to_hold(loaded, monkeypatch, room, expected) -> None:
    with_free(monkeypatch, loaded.model, room)
    assert memory.tokens_at_once(loaded, CONFIG) == expected


def test_recomputation_leaves_room_for_more(loaded, monkeypatch) -> None:
    with_free(monkeypatch, loaded.model, 100)
    assert memory.tokens_at_once(loaded, CONFIG.model_copy(update={"gradient_checkpointing": True})) == 1700


def test_moments_of_eight_bits_leave_room_for_more(loaded, monkeypatch) -> None:
    with_free(monkeypatch, loaded.model, 100)
    moving = sum(weight.nbytes for weight in loaded.model.parameters() if weight.requires_grad)
    more = int(0.5 * 1.5 * moving) // TOKEN_BYTES
    assert more > 0
    eight = CONFIG.model_copy(update={"optimizer": "adamw_8bit"})
    assert memory.tokens_at_once(loaded, eight) - 100 == pytest.approx(more, abs=1)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_activations_are_recomputed_where_the_longest_row_would_not_fit(
    tiny_model, monkeypatch, quantization: str
) -> None:
    """What the weights, their gradients and moments will take is not free, which the model's size tells."""
    model = ModelConfig(base=str(tiny_model), device="cpu", dtype="float32", quantization=quantization)
    sizes = sizes_of(model)
    taken = sizes.loaded_bytes + 4 * sizes.kept_bytes
    for room, context, expected in ((100, 100, False), (99, 100, True), (99, 99, False), (100, 4096, True)):
        monkeypatch.setattr(memory, "free_bytes", lambda _, room=room: taken + 2 * room * TOKEN_BYTES)
        assert memory.should_recompute(model, CONFIG, 4, context) == (expected, room)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 0)
    assert memory.should_recompute(model, CONFIG, 4, 100) == (True, 0)


def test_what_the_recipe_asks_for_is_taken_whatever_is_free(loaded, monkeypatch) -> None:
    with_free(monkeypatch, loaded.model, 1)
    assert memory.tokens_at_once(loaded, CONFIG.model_copy(update={"micro_batch_tokens": 5000})) == 5000


def test_the_next_stage_begins_with_what_was_found_to_fit(loaded, monkeypatch) -> None:
    with_free(monkeypatch, loaded.model, 1000)
    memory.remember(loaded, CONFIG, 300)
    assert memory.tokens_at_once(loaded, CONFIG) == 300
    assert memory.tokens_at_once(loaded, CONFIG.model_copy(update={"gradient_checkpointing": True})) == 2048
