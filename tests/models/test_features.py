"""The state at the last token of a prompt, alone and beside others, and kept by a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everlearn.artifacts import Artifact
from everlearn.errors import ModelError
from everlearn.models.embeddings import embed_texts
from everlearn.models.features import kept_prompt_states, last_prompt_states, read_states
from everlearn.models.loading import LoadedModel, load_model, save_checkpoint
from everlearn.models.state import MOVING, PartSettings
from everlearn.recipe import ModelConfig
from tests.conftest import ARCHITECTURES
from tests.odd_models import SWITCH, make_odd
from tests.tiny_models import make_tokenizer, save_tiny_model

PROMPTS = [[1, 5, 7, 9], [1, 8], [3], [1, *range(4, 20)], [2, 2, 6]]


def test_a_prompt_s_state_is_that_of_its_last_token_in_the_last_layer(folder: Path) -> None:
    loaded = load_model(ModelConfig(base=str(folder), dtype="float32"))
    states = last_prompt_states(loaded, PROMPTS)
    assert states.dtype == np.float32
    for prompt, state in zip(PROMPTS, states, strict=True):
        with torch.no_grad():
            alone = loaded.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(state, alone.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["phi3", "phimoe"])
def test_a_state_does_not_depend_on_the_longest_prompt(name: str) -> None:
    model = make_odd(name)
    loaded = LoadedModel(model, make_tokenizer(), "", "", 256, model.device)
    prompts = [[5, 9] * count for count in (1, 4, SWITCH // 2, 20)]
    alone = np.concatenate([last_prompt_states(loaded, [prompt]) for prompt in prompts])
    np.testing.assert_allclose(last_prompt_states(loaded, prompts), alone, atol=1e-5)


def test_kept_states_are_computed_for_the_step_that_makes_them(folder: Path, tmp_path: Path) -> None:
    asked = []

    def step(name, inputs, make, *, version=1):
        asked.append((name, dict(inputs)))
        make(tmp_path)
        return Artifact(tmp_path, "")

    loaded = load_model(ModelConfig(base=str(folder), dtype="float32"))
    path = kept_prompt_states(step, "qa/train", "model", PROMPTS, lambda: loaded)
    np.testing.assert_array_equal(read_states(path), last_prompt_states(loaded, PROMPTS))
    kept_prompt_states(step, "qa/train", "model", PROMPTS[1:], lambda: loaded)
    kept_prompt_states(step, "qa/train", "other", PROMPTS, lambda: loaded)
    assert len({str(inputs) for _, inputs in asked}) == 3  # prompts and model are what they depend on


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_soft_prompt_stands_before_each_prompt_that_is_read(architecture: str, tmp_path: Path) -> None:
    parts = {MOVING: PartSettings("PROMPT_TUNING", {"num_virtual_tokens": 6, "prompt_tuning_init": "SAMPLE_VOCAB"})}
    config = ModelConfig(base=str(save_tiny_model(tmp_path / "base", architecture)), dtype="float32", device="cpu")
    save_checkpoint(load_model(config, trainable=True, seed=1, adds=parts), tmp_path)
    loaded = load_model(config, checkpoint=tmp_path)
    states = last_prompt_states(loaded, PROMPTS)
    for prompt, state in zip(PROMPTS, states, strict=True):
        with torch.no_grad():  # PEFT's own way
            alone = loaded.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(state, alone.numpy(), atol=1e-5)
    assert np.abs(states - last_prompt_states(load_model(config), PROMPTS)).max() > 1e-3
    with pytest.raises(ModelError, match="would not see it"):
        embed_texts(loaded, ["red dog"])
