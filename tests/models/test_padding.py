"""Models whose answers would depend on the rows beside them are refused when they are loaded."""

from __future__ import annotations

import pytest

from everlearn.errors import ModelError
from everlearn.models.checking import check_model
from everlearn.models.loading import load_model
from everlearn.models.padding import check_padding
from everlearn.recipe import ModelConfig
from tests.odd_models import ALL, make_kind, make_odd
from tests.tiny_models import ARCHITECTURES, make_config, make_tokenizer

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CPMANT = {"hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64, "num_hidden_layers": 2}


def saved(folder, model):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return ModelConfig(base=str(folder), tuning="full", device="cpu")


@pytest.mark.parametrize(("kind", "settings"), [("bert", BERT), ("cpmant", CPMANT)])
def test_a_model_that_looks_ahead_is_refused(tmp_path, kind, settings):
    config = saved(tmp_path, make_kind(kind, **settings))
    with pytest.raises(ModelError, match=f"{kind} models compute a row otherwise beside a longer one"):
        load_model(config)


def test_the_same_model_as_a_decoder_is_taken():
    check_padding(make_kind("bert", is_decoder=True, **BERT), "here")


@pytest.mark.parametrize("name", ALL)
def test_odd_models_that_can_be_computed_as_if_alone_are_taken(name):
    check_padding(make_odd(name), "here")


@pytest.mark.parametrize("architecture", ARCHITECTURES[:3])
def test_ordinary_models_are_not_tried(architecture):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make_config(architecture, 100))
    model.register_forward_hook(lambda *_: pytest.fail("a forward pass"))
    check_padding(model, "here")


def test_a_model_with_a_cache_of_its_own_is_refused_before_its_weights_are_read(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 64, "head_dim": 8, "num_local_experts": 4}
    with pytest.raises(ModelError, match="minimax models keep what they have read in a way of their own"):
        check_model(saved(tmp_path, make_kind("minimax", **sizes)))
