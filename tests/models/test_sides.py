"""Where a model begins to compute otherwise, found without a forward pass."""

from __future__ import annotations

import pytest

from everlearn.models.sides import Sides
from tests.odd_models import LONGROPE, SWITCH, make_kind, make_odd
from tests.tiny_models import ARCHITECTURES, make_config


@pytest.mark.parametrize("name", LONGROPE)
def test_the_switch_of_a_rotary_embedding_is_found(name):
    model = make_odd(name)
    model.register_forward_hook(lambda *_: pytest.fail("a forward pass"))
    sides = Sides(model)
    assert [sides.of(length) for length in (1, SWITCH, SWITCH + 1, 256)] == [0, 0, 1, 1]
    assert sides.end(0) == SWITCH + 1
    assert sides.end(1) is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ordinary_models_have_one_side(architecture):
    from transformers import AutoModelForCausalLM

    sides = Sides(AutoModelForCausalLM.from_config(make_config(architecture, 100)))
    assert {sides.of(length) for length in (1, 100, 256)} == {0}
    assert sides.end(0) is None


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3", "dynamic"])
def test_scales_that_stay_the_same_within_the_context_make_no_side(kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    rope |= {"original_max_position_embeddings": 64} if kind in ("llama3", "yarn") else {}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    assert Sides(make_kind("llama", rope_parameters=rope, **sizes)).end(0) is None


def test_an_embedding_that_changes_with_every_length_lets_only_equal_lengths_together():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make_config("llama", 100))
    rotary = model.model.rotary_emb
    forward = rotary.forward

    def growing(x, position_ids):
        cos, sin = forward(x, position_ids)
        return cos * max(1.0, (int(position_ids.max()) + 1) / 100), sin

    rotary.forward = growing
    sides = Sides(model)
    assert sides.of(99) == sides.of(90)
    assert len({sides.of(length) for length in range(101, 120)}) == 19


def test_rows_of_a_model_with_compressed_keys_are_only_beside_equals():
    sides = Sides(make_odd("deepseek_v32"))
    assert [sides.of(length) for length in (3, 7)] == [3, 7]
