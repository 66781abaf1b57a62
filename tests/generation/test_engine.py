from __future__ import annotations

import pytest
import torch

from everlearn.errors import UserError
from everlearn.generation.engine import TransformersGenerator
from everlearn.generation.protocol import Sampling
from tests.generation.models import ARCHITECTURES, END, make_model, make_prompts, reference

NEW = 14
PROMPTS = [*make_prompts(6, shared=70, seed=1), *make_prompts(5, seed=2)]
"""Six prompts whose first 70 tokens are worth computing once, five that share nothing."""

SAMPLED = Sampling(
    max_new_tokens=NEW, temperature=0.9, top_p=0.9, top_k=40, repetition_penalty=1.2, samples_per_prompt=3, seed=5
)


def complete(model, tokenizer, prompts, sampling=None, **options):
    generator = TransformersGenerator(model, tokenizer, **options)
    return generator.generate(prompts, sampling or Sampling(max_new_tokens=NEW))


def ids_of(completions) -> list[list[int]]:
    return [list(row[0].token_ids) for row in completions]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_greedy_tokens_are_those_of_generate(architecture, lora):
    model, tokenizer = make_model(architecture, lora=lora)
    prompts = PROMPTS[2:9] if lora else PROMPTS
    assert ids_of(complete(model, tokenizer, prompts, max_rows=8)) == reference(model, prompts, NEW)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_with_a_repetition_penalty_are_those_of_generate(architecture):
    model, tokenizer = make_model(architecture)
    sampling = Sampling(max_new_tokens=NEW, repetition_penalty=1.3)
    expected = reference(model, PROMPTS[2:9], NEW, repetition_penalty=1.3)
    assert ids_of(complete(model, tokenizer, PROMPTS[2:9], sampling)) == expected
    assert expected != reference(model, PROMPTS[2:9], NEW)


def test_prefixes_are_shared_for_all_four_architectures():
    for architecture in ARCHITECTURES:
        model, tokenizer = make_model(architecture)
        generator = TransformersGenerator(model, tokenizer)
        generator.generate([[5, 6]], Sampling(max_new_tokens=1))
        assert generator.shares_prefixes, architecture


def test_nested_prefixes_are_computed_once():
    model, tokenizer = make_model("llama")
    definition, firsts = make_prompts(1, shared=80, seed=3)[0], make_prompts(3, low=70, high=75, seed=4)
    prompts = [definition + first + tail for first in firsts for tail in make_prompts(8, seed=6)]
    fed: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, ids, __: fed.append(ids[0].numel()))
    result = complete(model, tokenizer, prompts, Sampling(max_new_tokens=1))
    handle.remove()
    without = sum(map(len, prompts))
    assert sum(fed) < 0.25 * without
    assert ids_of(result) == reference(model, prompts, 1)


@pytest.mark.parametrize("window", [5, 8, 80, 90, 300])
@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_rows_within_a_window_share_prefixes_and_go_on_by_themselves_beyond_it(kind, window):
    """Prompts shorter and longer than the window, and rows that outgrow it while they answer."""
    model, tokenizer = windowed(kind, window)
    generator = TransformersGenerator(model, tokenizer, max_rows=6)
    assert ids_of(generator.generate(PROMPTS, Sampling(max_new_tokens=NEW))) == reference(model, PROMPTS, NEW)
    assert generator.shares_prefixes == (window > 5)  # tried on six tokens
    plain = TransformersGenerator(model, tokenizer, max_rows=6)
    plain.shares_prefixes = False
    assert generator.generate(PROMPTS, SAMPLED) == plain.generate(PROMPTS, SAMPLED)


def test_a_row_that_outgrows_the_window_still_ends_at_a_stop_string_across_it():
    model, tokenizer = windowed("mistral", 80)
    prompts = PROMPTS[:6]
    text = complete(model, tokenizer, prompts)[0][0].text
    assert len(text) > 6
    for stop in (text[3:5], text[-3:-1]):
        rows = complete(model, tokenizer, prompts, Sampling(max_new_tokens=NEW, stop=(stop,)))
        assert rows[0][0].text == text[: text.index(stop)]
        assert rows[0][0].finish_reason == "stop"


def windowed(kind: str, window: int):
    """A random model of which some or all layers see so many tokens."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

    _, tokenizer = make_model("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 256, "head_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mistral":
            model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=window, eos_token_id=END))
        else:
            layers = ["sliding_attention", "full_attention"]
            settings = Gemma3TextConfig(**sizes, sliding_window=window, layer_types=layers, eos_token_id=END)
            model = Gemma3ForCausalLM(settings)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.eval(), tokenizer


def test_a_model_with_linear_attention_keeps_its_own_cache_as_rows_leave():
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    _, tokenizer = make_model("llama")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": len(tokenizer)}
    others = {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16, "eos_token_id": END}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3NextForCausalLM(Qwen3NextConfig(**sizes, **heads, **linear, **experts, **others)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    generator = TransformersGenerator(model, tokenizer, max_rows=4)
    prompts = PROMPTS[4:]
    assert ids_of(generator.generate(prompts, Sampling(max_new_tokens=NEW))) == reference(model, prompts, NEW)
    assert not generator.shares_prefixes
    assert {len(rows) for rows in generator.generate(prompts, SAMPLED)} == {3}


def test_the_fallback_gives_the_same_samples_as_shared_prefixes():
    model, tokenizer = make_model("gpt_neox")
    plain = TransformersGenerator(model, tokenizer, max_rows=9)
    plain.shares_prefixes = False
    assert plain.generate(PROMPTS, SAMPLED) == complete(model, tokenizer, PROMPTS, SAMPLED)


def test_a_sample_does_not_depend_on_its_batch():
    model, tokenizer = make_model("llama")
    together = complete(model, tokenizer, PROMPTS, SAMPLED)
    assert complete(model, tokenizer, PROMPTS, SAMPLED, max_rows=5) == together
    assert complete(model, tokenizer, PROMPTS[:3], SAMPLED) == together[:3]


def test_samples_of_one_prompt_differ_and_another_seed_gives_others():
    model, tokenizer = make_model("llama")
    first = complete(model, tokenizer, PROMPTS[:2], SAMPLED)
    assert [len(row) for row in first] == [3, 3]
    assert len({completion.token_ids for completion in first[0]}) == 3
    other = Sampling(
        max_new_tokens=NEW, temperature=0.9, top_p=0.9, top_k=40, repetition_penalty=1.2, samples_per_prompt=3, seed=6
    )
    assert complete(model, tokenizer, PROMPTS[:2], other) != first


def test_equal_prompts_get_samples_of_their_own():
    model, tokenizer = make_model("llama")
    first, second = complete(model, tokenizer, [PROMPTS[7], PROMPTS[7]], SAMPLED)
    assert len({completion.token_ids for completion in (*first, *second)}) == 6


def test_more_prompts_than_rows_join_as_others_end():
    model, tokenizer = make_model("qwen3")
    prompts = [*make_prompts(10, seed=8), *make_prompts(9, shared=70, seed=9)]
    sampling = Sampling(max_new_tokens=24)
    expected = ids_of(complete(model, tokenizer, prompts, sampling))
    for options in ({"max_rows": 6}, {"max_rows": 1}, {"max_batch_tokens": 150}):
        assert ids_of(complete(model, tokenizer, prompts, sampling, **options)) == expected
    assert len({len(ids) for ids in expected}) > 1


def test_finish_reasons_are_told_apart():
    model, tokenizer = make_model("llama")
    greedy = complete(model, tokenizer, make_prompts(30, seed=2), Sampling(max_new_tokens=40))
    reasons = {row[0].finish_reason for row in greedy}
    assert reasons == {"eos", "length"}
    for row in greedy:
        assert END not in row[0].token_ids
        assert (len(row[0].token_ids) == 40) == (row[0].finish_reason == "length")
    word = next(word for row in greedy for word in row[0].text.split()[3:] if len(word) > 2)
    stopped = complete(model, tokenizer, make_prompts(30, seed=2), Sampling(max_new_tokens=40, stop=(word,)))
    assert any(row[0].finish_reason == "stop" for row in stopped)
    for before, after in zip(greedy, stopped, strict=True):
        assert after[0].text == before[0].text.split(word)[0]


def test_an_end_token_in_the_last_place_is_an_end():
    model, tokenizer = make_model("llama")
    prompts = make_prompts(30, seed=2)
    ended = zip(prompts, complete(model, tokenizer, prompts, Sampling(max_new_tokens=40)), strict=True)
    prompt, expected = next((prompt, row) for prompt, row in ended if row[0].finish_reason == "eos")
    room = Sampling(max_new_tokens=len(expected[0].token_ids) + 1)
    assert complete(model, tokenizer, [prompt], room) == [expected]


def test_all_end_tokens_of_the_call_and_of_the_generation_configuration_count():
    model, tokenizer = make_model("llama")
    free = complete(model, tokenizer, PROMPTS[:1])[0][0].token_ids
    result = complete(model, tokenizer, PROMPTS[:1], Sampling(max_new_tokens=NEW, end_ids=(free[4],)))[0][0]
    assert (result.token_ids, result.finish_reason) == (free[: free.index(free[4])], "eos")
    model.generation_config.eos_token_id = [END, free[4]]
    result = complete(model, tokenizer, PROMPTS[:1])[0][0]
    assert (result.token_ids, result.finish_reason) == (free[: free.index(free[4])], "eos")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_completion_ends_with_the_context(architecture):
    model, tokenizer = make_model(architecture, context=24)
    prompts = make_prompts(9, low=10, high=23, seed=4)
    result = complete(model, tokenizer, prompts, Sampling(max_new_tokens=100))
    full = [
        len(prompt) + len(row[0].token_ids) == 24
        for prompt, row in zip(prompts, result, strict=True)
        if row[0].finish_reason == "length"
    ]
    assert full
    assert all(full)


def test_max_length_counts_the_prompt():
    model, tokenizer = make_model("llama")
    result = complete(model, tokenizer, [[5] * 8, [6] * 11], Sampling(max_new_tokens=50, max_length=12))
    assert [len(row[0].token_ids) for row in result] == [4, 1]


def test_a_prompt_without_room_is_refused_by_index_and_length():
    model, tokenizer = make_model("llama", context=24)
    with pytest.raises(UserError, match=r"prompt 1 .* 24 tokens .* context of 24 .* at most 23 tokens"):
        complete(model, tokenizer, [[5], [5] * 24])
    with pytest.raises(UserError, match=r"prompt 0 .* 9 tokens .* max_length of 9"):
        complete(model, tokenizer, [[5] * 9], Sampling(max_length=9))
    with pytest.raises(UserError, match=r"prompt 0 .* no tokens"):
        complete(model, tokenizer, [[]])


def test_no_prompts_give_no_completions():
    model, tokenizer = make_model("llama")
    assert complete(model, tokenizer, []) == []


def test_equal_greedy_prompts_are_completed_once():
    model, tokenizer = make_model("llama")
    fed: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, ids, __: fed.append(len(ids[0])))
    repeated = Sampling(max_new_tokens=NEW, samples_per_prompt=2)
    result = complete(model, tokenizer, [PROMPTS[7], PROMPTS[8], PROMPTS[7]], repeated)
    handle.remove()
    assert max(fed) == 2
    assert result[0] == result[2]
    assert [len(row) for row in result] == [2, 2, 2]


def test_the_model_is_left_as_it_was_and_dropout_is_off():
    model, tokenizer = make_model("gpt2", lora=True)
    expected = complete(model, tokenizer, PROMPTS[:2])
    model.train()
    model.base_model.model.lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert complete(model, tokenizer, PROMPTS[:2]) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config._attn_implementation == "sdpa"


def test_gradient_checkpointing_does_not_change_completions():
    model, tokenizer = make_model("llama")
    expected = complete(model, tokenizer, PROMPTS)
    model.train()
    model.gradient_checkpointing_enable()
    assert complete(model, tokenizer, PROMPTS) == expected


def test_the_random_state_of_torch_is_not_touched():
    model, tokenizer = make_model("llama")
    before = torch.get_rng_state()
    complete(model, tokenizer, PROMPTS[:2], SAMPLED)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_counts_prompts_and_before_the_first_is_finished_tokens():
    model, tokenizer = make_model("llama")
    told = []
    generator = TransformersGenerator(model, tokenizer)
    completions = generator.generate(
        [*PROMPTS, PROMPTS[0]], Sampling(max_new_tokens=NEW), lambda *shown: told.append(shown)
    )
    finished, totals, tokens = zip(*told, strict=True)
    assert finished[0] == 0
    assert list(finished) == sorted(finished)
    assert finished[-1] == len(PROMPTS) + 1, "an equal prompt counts, though it is computed once"
    assert set(totals) == {len(PROMPTS) + 1}
    written = sum(len(row.token_ids) + (row.finish_reason == "eos") for (row,) in completions[:-1])
    assert list(tokens) == sorted(tokens)
    assert tokens[-1] == written
