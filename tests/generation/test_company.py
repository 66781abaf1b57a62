"""Answers do not depend on the rows that are computed together."""

from __future__ import annotations

import copy

import pytest

from everlearn.generation.engine import TransformersGenerator
from everlearn.generation.plain_state import bears_padding
from everlearn.generation.protocol import Sampling
from tests.generation.models import make_model, make_prompts, reference
from tests.odd_models import ALL, LONGROPE, PADDED, SWITCH, make_odd
from tests.tiny_models import make_tokenizer

NEW = 12
LENGTHS = (3, 12, SWITCH - NEW + 1, SWITCH - NEW + 2, SWITCH - 1, SWITCH, SWITCH + 1, 70)
"""Prompts that stay in the short way to their last token, cross by one, by most of their tokens, or begin beyond."""


def prompts_of(*lengths: int) -> list[list[int]]:
    return [make_prompts(1, low=length, high=length, seed=length)[0] for length in lengths]


def answers(model, prompts, sampling=None, **options):
    generator = TransformersGenerator(model, make_tokenizer(), **options)
    rows = generator.generate(prompts, sampling or Sampling(max_new_tokens=NEW))
    return [list(row[0].token_ids) for row in rows]


def alone(model, prompts) -> list[list[int]]:
    """By `generate`, each with a model of its own: a rotary embedding may remember the last row."""
    return [row for prompt in prompts for row in reference(copy.deepcopy(model), [prompt], NEW)]


@pytest.mark.parametrize("name", ALL)
def test_greedy_answers_beside_longer_prompts_are_those_of_generate(name):
    model = make_odd(name)
    prompts = prompts_of(*(LENGTHS if name in LONGROPE else (3, 4, 9, 30)))
    expected = alone(model, prompts)
    assert answers(model, prompts) == expected
    assert answers(model, prompts, max_rows=2) == expected


def test_prompts_of_one_length_that_cross_come_together_and_leave_as_they_end():
    model = make_odd("phi3")
    prompts = [prompt for seed in range(9) for prompt in make_prompts(1, low=33, high=33, seed=seed)]
    expected = alone(model, prompts)
    assert answers(model, prompts) == expected


def test_long_prompts_with_a_common_beginning_do_not_share_it_in_the_short_way():
    model = make_odd("llama")
    beginning = make_prompts(1, low=35, high=35)[0]
    prompts = [beginning + tail for tail in make_prompts(20, low=10, high=20, seed=1)]
    assert answers(model, prompts) == alone(model, prompts)


def test_samples_do_not_depend_on_their_company():
    model = make_odd("phi3")
    prompts = prompts_of(*LENGTHS)
    sampling = Sampling(max_new_tokens=NEW, temperature=1.0, samples_per_prompt=2, seed=3)
    together = TransformersGenerator(model, make_tokenizer()).generate(prompts, sampling)
    few = TransformersGenerator(model, make_tokenizer(), max_rows=2).generate(prompts, sampling)
    assert few == together


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_an_ended_row_that_lingers_does_not_change_the_way_of_the_others(name):
    model = make_odd(name)
    # the first ends at the switch, the others have far to go from there and stay below it
    prompts = [*prompts_of(SWITCH - 3), *make_prompts(12, low=2, high=4, seed=5)]
    generator = TransformersGenerator(model, make_tokenizer(), context_length=SWITCH)
    rows = generator.generate(prompts, Sampling(max_new_tokens=30))
    expected = [row for prompt in prompts[1:] for row in reference(copy.deepcopy(model), [prompt], 30)]
    assert [list(row[0].token_ids) for row in rows[1:]] == expected


def test_whether_a_model_bears_padding_is_found_by_trying():
    assert {name: bears_padding(make_odd(name)) for name in PADDED} == {name: name == "bloom" for name in PADDED}


@pytest.mark.parametrize("name", LONGROPE)
def test_windows_and_linear_attention_bear_padding(name):
    assert bears_padding(make_odd(name))


def test_an_ordinary_model_is_not_asked_more_than_before():
    model, tokenizer = make_model("llama")
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    generator = TransformersGenerator(model, tokenizer)
    generator.shares_prefixes = True
    generator.generate([[5, 6, 7], [8] * 20], Sampling(max_new_tokens=3))
    assert len(calls) == 3
