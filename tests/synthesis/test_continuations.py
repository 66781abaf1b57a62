"""The raw step: which prompts have room, how continuations are drawn, and the seeds of the draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import everlearn.synthesis.continuations as continuations
from everlearn.progress import LineProgress
from everlearn.synthesis.continuations import longest_block, prompts_for, sampling_for, write_raw
from everlearn.synthesis.options import DemonstrationOptions, Settings, resolve
from everlearn.synthesis.prompts import SynthesisPrompt
from everlearn.synthesis.writers.demonstrations import FromDemonstrations
from tests.data.byte_tokenizer import make_byte_tokenizer
from tests.synthesis.fakes import FakeGenerator, number_task

TOKENIZER = make_byte_tokenizer()
POOL = number_task().demonstrations
LONGEST = longest_block(POOL, "superni", TOKENIZER)


def settings(count: int = 10, **values: object) -> tuple[DemonstrationOptions, Settings]:
    options = DemonstrationOptions.model_validate(values)
    return options, resolve(options, count)


def prompts(task: str = "numbers", *, seed: int = 0, context: int = 4096, **values: object) -> list[SynthesisPrompt]:
    return prompts_for(task, POOL, "superni", *settings(**values), TOKENIZER, context, seed=seed)


@pytest.mark.parametrize(("preset", "room"), [("faithful", 1), ("improved", LONGEST)])
def test_a_prompt_leaves_room_for_a_token_or_improved_for_the_longest_demonstration(preset: str, room: int) -> None:
    longest = max(len(prompt.text) for prompt in prompts(preset=preset))
    fitting = 1 + longest + room  # BOS comes before the prompt
    every = prompts(preset=preset)
    assert prompts(preset=preset, max_length=fitting) == prompts(preset=preset, context=fitting) == every
    for bound in ({"max_length": fitting - 1}, {"context": fitting - 1}):
        shorter = [prompt for prompt in every if len(prompt.text) < longest]
        assert prompts(preset=preset, **bound) == shorter  # type: ignore[arg-type]


def test_prompts_are_drawn_by_seed_and_task() -> None:
    drawn = {
        tuple(prompt.subset for prompt in prompts(task, seed=seed, max_prompts=5))
        for task, seed in (("numbers", 0), ("numbers", 0), ("numbers", 1), ("letters", 0))
    }
    assert len(drawn) == 3


@pytest.mark.parametrize(
    ("values", "cap"),
    [
        ({}, 2 * LONGEST),
        ({"preset": "faithful"}, 2048),
        ({"preset": "faithful", "max_length": 999}, 999),
        ({"max_new_tokens": 7}, 7),
        ({"preset": "faithful", "max_new_tokens": 7}, 7),
    ],
)
def test_a_continuation_has_the_length_asked_for_or_that_of_the_preset(values: dict[str, object], cap: int) -> None:
    assert sampling_for(POOL, "superni", *settings(**values), TOKENIZER).max_new_tokens == cap


def test_every_option_of_the_sampling_reaches_the_engine() -> None:
    values = {"temperature": 0.4, "top_p": 0.3, "top_k": 7, "repetition_penalty": 1.3, "samples_per_prompt": 2}
    sampling = sampling_for(POOL, "superni", *settings(**values, max_length=900, stop=["."]), TOKENIZER)
    assert {name: getattr(sampling, name) for name in values} == values
    assert (sampling.max_length, sampling.stop) == (900, (".",))
    assert sampling_for(POOL, "superni", *settings(stop=[]), TOKENIZER).stop == ()


def test_every_chunk_task_and_run_has_a_seed_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "CHUNK_SEQUENCES", 10)
    seeds = []
    for task, seed in (("numbers", 0), ("numbers", 1), ("letters", 0)):
        generator = FakeGenerator(TOKENIZER)
        write_raw(
            tmp_path / f"{task}-{seed}",
            FromDemonstrations(replace(number_task(), name=task), *settings(4), is_refined=True),
            prompts(count=4),
            sampling_for(POOL, "superni", *settings(4), TOKENIZER),
            TOKENIZER,
            generator,
            seed=seed,
            progress=LineProgress(),
        )
        seeds += [sampling.seed for _, sampling in generator.calls]
    assert len(seeds) == len(set(seeds)) >= 6


@pytest.mark.parametrize("stop", [[], ["."]])
def test_much_that_nothing_ends_is_told_before_it_is_written(
    stop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuations, "_MANY_TOKENS", 10)
    of_preset, said, progress = settings(4, stop=stop, max_new_tokens=50), [], LineProgress()
    monkeypatch.setattr(progress, "say", said.append)
    write_raw(
        tmp_path,
        FromDemonstrations(number_task(), *of_preset, is_refined=True),
        prompts(count=4),
        sampling_for(POOL, "superni", *of_preset, TOKENIZER),
        TOKENIZER,
        FakeGenerator(TOKENIZER),
        seed=0,
        progress=progress,
    )
    assert [line for line in said if "no mark to stop at: up to" in line] == ([] if stop else said)
    assert bool(said) == (not stop)


@pytest.mark.parametrize(("samples", "sizes"), [(1, [10, 10, 10]), (2, [5] * 6), (3, [5] * 6)])
def test_a_chunk_is_whole_groups_of_one_first_demonstration(
    samples: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuations, "CHUNK_SEQUENCES", 10)
    chunks = continuations.chunks_of(prompts(), samples)
    assert [len(chunk) for chunk in chunks] == sizes
    assert [prompt for chunk in chunks for prompt in chunk] == prompts()
