from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from everlearn.errors import UserError
from everlearn.generation import memory
from everlearn.generation.engine import TransformersGenerator
from everlearn.generation.protocol import Sampling
from everlearn.generation.row_store import GRANULE, RowStore
from tests.generation.models import ARCHITECTURES, make_model, make_prompts

PROMPTS = [*make_prompts(10, shared=70, seed=1), *make_prompts(9, seed=2)]
SAMPLED = Sampling(max_new_tokens=12, temperature=0.9, top_p=0.9, samples_per_prompt=3, seed=5)


class Device:
    """Has room for so many rows; stands before the model's forward pass."""

    def __init__(self, rows: int) -> None:
        self.rows, self.seen = rows, []

    def __call__(self, module: object, arguments: tuple, named: dict) -> None:
        self.seen.append(named["input_ids"].shape[0])
        if self.seen[-1] > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tokens_bytes_are_those_of_the_models_cache(architecture: str) -> None:
    model, _ = make_model(architecture)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.token_bytes(model) * 3 == held


def test_layers_of_several_widths_count_with_the_widest() -> None:
    from types import SimpleNamespace

    from transformers import Gemma4TextConfig

    settings = Gemma4TextConfig(num_hidden_layers=6, num_key_value_heads=2, head_dim=8, global_head_dim=16)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: settings), dtype=torch.bfloat16)
    assert memory.token_bytes(model) == 6 * 2 * 2 * 16 * 2


def test_cached_tokens_fill_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make_model("llama")
    monkeypatch.setattr(memory, "free_bytes", lambda device: memory.token_bytes(model) * 400)
    assert memory.cached_tokens(model) == 100  # half of the memory, in which a store and its successor stand
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    assert memory.cached_tokens(model) == 1
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 50)
    assert memory.cached_tokens(model) == memory.MOST_TOKENS["cpu"]


def test_a_store_sets_aside_no_more_than_its_tokens() -> None:
    states = [torch.zeros(4, 2, 100, 8)]
    store = RowStore(256, 2000)
    store.add(states, states, [0] * 4, 1, None, 140)
    rows, _, _, _, columns, _ = store._store.shape
    assert columns == -(-140 // GRANULE) * GRANULE
    assert rows * columns <= 2000
    store.add([states[0].repeat(5, 1, 1, 1)] * 1, [states[0].repeat(5, 1, 1, 1)], [0] * 20, 1, None, 140)
    assert store.count == 24, "what is needed is held, whatever the limit"


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=12), SAMPLED])
def test_batches_are_halved_until_they_fit_with_the_same_completions(shares: bool, sampling: Sampling) -> None:
    model, tokenizer = make_model("llama")
    expected = TransformersGenerator(model, tokenizer).generate(PROMPTS, sampling)
    generator = TransformersGenerator(model, tokenizer)
    generator.shares_prefixes = shares
    device, told = Device(rows=5), []
    handle = model.register_forward_pre_hook(device, with_kwargs=True)
    found = generator.generate(PROMPTS, sampling, lambda done, *_: told.append(done))
    assert found == expected
    assert told == sorted(told)
    assert told[-1] == len(PROMPTS)
    assert max(device.seen) > 5, "it began with more"
    device.seen.clear()
    assert generator.generate(PROMPTS, sampling) == expected
    assert max(device.seen) <= 5, "what did not fit is not tried again"
    handle.remove()


def test_no_room_for_one_row_is_one_sentence() -> None:
    model, tokenizer = make_model("llama")
    model.register_forward_pre_hook(Device(rows=0), with_kwargs=True)
    generator = TransformersGenerator(model, tokenizer)
    generator.shares_prefixes = True
    with pytest.raises(UserError, match=r"ran out of memory on cpu with one row at a time: lower evaluation\.max_new"):
        generator.generate(PROMPTS, Sampling(max_new_tokens=12))


def test_other_faults_of_torch_are_not_taken_for_lack_of_memory() -> None:
    model, tokenizer = make_model("llama")
    generator = TransformersGenerator(model, tokenizer)
    generator.shares_prefixes = True

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes"):
        generator.generate(PROMPTS, Sampling(max_new_tokens=12))
