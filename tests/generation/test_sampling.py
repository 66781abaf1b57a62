from __future__ import annotations

import pytest
import torch
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from everlearn.generation.protocol import Sampling
from everlearn.generation.sampling import CANDIDATES, UniformStream, choose, nucleus, top_candidates

ROWS, VOCABULARY = 4, 3000


def random_logits(scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0))


def reference_probabilities(logits, history, sampling) -> torch.Tensor:
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return steps(history, logits.clone()).softmax(dim=-1)


SETTINGS = [
    Sampling(temperature=0.9, top_p=0.6, top_k=50, repetition_penalty=1.2),
    Sampling(temperature=0.9, top_p=0.6),
    Sampling(temperature=0.7, top_k=20),
    Sampling(temperature=1.5, top_p=0.999),
    Sampling(temperature=1.3),
    Sampling(temperature=1.0, top_p=0.1, top_k=1),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("scale", [0.2, 4.0])
def test_every_quantile_draws_the_token_that_transformers_probabilities_give(sampling, scale):
    logits = random_logits(scale)
    history = torch.randint(0, VOCABULARY, (ROWS, 60), generator=torch.Generator().manual_seed(1))
    expected = reference_probabilities(logits, history, sampling)
    count = 200
    drawn = torch.zeros_like(expected)
    for i in range(count):
        tokens = choose(logits.clone(), sampling, history, [(i + 0.5) / count] * ROWS)
        drawn[torch.arange(ROWS), tokens] += 1 / count
    assert not ((drawn > 0) & (expected == 0)).any()
    likely = expected > 0.01
    assert (drawn - expected)[likely].abs().max() <= 1 / count + 1e-4 if likely.any() else True
    assert (drawn - expected).abs().max() <= 1 / count + 1e-4


@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 0.999])
def test_the_nucleus_has_the_tokens_of_transformers(top_p):
    logits = random_logits(1.0)
    expected = reference_probabilities(logits, None, Sampling(temperature=1.0, top_p=top_p))
    probabilities, ids = nucleus(logits, 0, top_p)
    kept = torch.zeros_like(expected).scatter(1, ids, (probabilities > 0).float())
    different = kept.bool() != (expected > 0)
    assert (expected + torch.zeros_like(expected).scatter(1, ids, probabilities))[different].sum() < 1e-5
    assert different.sum(dim=-1).max() <= 1
    assert (top_p < 0.5) == (probabilities.shape[1] == CANDIDATES)


def test_greedy_with_a_penalty_equals_the_processor():
    logits = random_logits()
    history = logits.topk(5).indices
    expected = RepetitionPenaltyLogitsProcessor(1.7)(history, logits.clone()).argmax(dim=-1)
    assert torch.equal(choose(logits.clone(), Sampling(repetition_penalty=1.7), history), expected)
    assert not torch.equal(expected, logits.argmax(dim=-1))


@pytest.mark.parametrize("vocabulary", [100, 4096, 4099, 20000])
def test_candidates_in_two_stages_are_those_of_one(vocabulary):
    logits = torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(2))
    values, ids = top_candidates(logits, 50)
    expected = logits.topk(50)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


def test_the_last_quantile_draws_no_token_outside_the_nucleus():
    logits = random_logits()
    tokens = choose(logits, Sampling(temperature=1.0, top_p=0.3), None, [1.0] * ROWS)
    expected = reference_probabilities(logits, None, Sampling(temperature=1.0, top_p=0.3))
    assert (expected[torch.arange(ROWS), tokens] > 0).all()


def test_streams_repeat_and_differ_by_seed_prompt_and_sample():
    def first(*key: int) -> list[float]:
        stream = UniformStream(*key)
        return [stream.next() for _ in range(100)]

    assert first(1, 2, 3) == first(1, 2, 3)
    streams = {tuple(first(*key)) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]}
    assert len(streams) == 4
    numbers = [number for stream in streams for number in stream]
    assert 0.0 <= min(numbers) < 0.1 < 0.9 < max(numbers) <= 1.0
