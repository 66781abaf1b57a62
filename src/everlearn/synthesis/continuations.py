"""The raw step: the base model continues prompts of demonstrations.

Prompts that share their first demonstration stand together, in order, so that an engine computes the shared beginning
once. They are done in chunks of whole such groups; each chunk's rows are on disk before the next begins, and each has
random streams of its own, so that a killed step resumes with the rows it would have had.
Source: arXiv 2403.01244, section 3.2 and the released generation script (spec section 1): exact repetitions among
the samples of one prompt are dropped, nothing else is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance
from everlearn.data.prompts import bos_ids
from everlearn.errors import DataError
from everlearn.files import write_json
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Completion, Sampling
from everlearn.seeds import derive
from everlearn.synthesis.demonstrations import Layout, ordered_subsets
from everlearn.synthesis.options import DemonstrationOptions, Settings
from everlearn.synthesis.prompts import SynthesisPrompt, alpaca_block, superni_block, synthesis_prompts
from everlearn.synthesis.steps import Row, in_chunks
from everlearn.synthesis.writers.writer import Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.generation.protocol import Generator
    from everlearn.progress import Progress

CHUNK_SEQUENCES = 256
"""Continuations between two writes: the engine's largest batch, seconds to a few minutes of work."""
_MANY_TOKENS = 100_000
"""Beyond so many the user is told before they are written: minutes on a GPU, hours on a CPU."""
NEXT_INSTANCE = {"superni": "\nInput:", "alpaca": "\nInstruction:"}
"""The mark of the next instance at a line's start."""


def prompts_for(
    task: str,
    demonstrations: Sequence[Instance],
    layout: Layout,
    options: DemonstrationOptions,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    *,
    seed: int,
) -> list[SynthesisPrompt]:
    """The prompts of a task that the model can take.

    Args:
        task: Its name.
        demonstrations: The pool.
        layout: Of the prompts.
        options: What is shown.
        settings: How many and how long.
        tokenizer: Of the base model.
        context: Of the base model, in tokens.
        seed: Draws prompts when not all are used.

    Raises:
        DataError: all of them are too long; names the shortest and the remedy.
    """
    size, shown = len(demonstrations), options.demonstrations
    most, _ = options.plan(settings, math.perm(size, shown))
    subsets = ordered_subsets(size, shown, most=most, seed=derive(seed, "synthesis", task, "prompts"))
    return _fitting(task, demonstrations, subsets, layout, options, settings, tokenizer, context)


def check_room(
    task: str,
    demonstrations: Sequence[Instance],
    layout: Layout,
    options: DemonstrationOptions,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> None:
    """Refuses a pool of which not even the shortest prompt fits; arguments as in `prompts_for`.

    Raises:
        DataError: names the length and the remedy.
    """
    lengths = _block_lengths(demonstrations, layout, tokenizer)
    shortest = sorted(range(len(lengths)), key=lambda at: lengths[at])[: options.demonstrations]
    _fitting(task, demonstrations, [tuple(shortest)], layout, options, settings, tokenizer, context)


def _fitting(
    task: str,
    demonstrations: Sequence[Instance],
    subsets: Sequence[tuple[int, ...]],
    layout: Layout,
    options: DemonstrationOptions,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[SynthesisPrompt]:
    """The prompts of these subsets that leave room: for a token, or improved for the longest demonstration."""
    room = longest_block(demonstrations, layout, tokenizer) if settings.is_improved else 1
    limit = min(options.max_length, context) - len(bos_ids(tokenizer)) - room + 1
    lengths: list[int] = []

    def count_tokens(text: str) -> int:
        lengths.append(len(plain_ids(text, tokenizer)))
        return lengths[-1]

    prompts = synthesis_prompts(demonstrations, subsets, layout, count_tokens=count_tokens, limit=limit)
    if not prompts:
        raise DataError(
            f"task {task}: even the shortest synthesis prompt has {min(lengths)} tokens, and with room for an "
            f"instance at most {limit - 1} fit into the model's context of {context}: lower the method's "
            f"`demonstrations` (now {options.demonstrations}), give shorter demonstrations, or use a model "
            "with a longer context."
        )
    return prompts


def longest_block(demonstrations: Sequence[Instance], layout: Layout, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest demonstration as it stands in a prompt."""
    return max(_block_lengths(demonstrations, layout, tokenizer))


def _block_lengths(
    demonstrations: Sequence[Instance], layout: Layout, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    block = superni_block if layout == "superni" else alpaca_block
    return [len(plain_ids(block(row), tokenizer)) for row in demonstrations]


def sampling_for(
    demonstrations: Sequence[Instance],
    layout: Layout,
    options: DemonstrationOptions,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
) -> Sampling:
    """How continuations are drawn; the seed is set for each chunk."""
    cap = options.max_length
    stop: tuple[str, ...] = ()
    if settings.is_improved:
        cap = 2 * longest_block(demonstrations, layout, tokenizer)
        stop = (NEXT_INSTANCE[layout],)
    _, samples = options.plan(settings, math.perm(len(demonstrations), options.demonstrations))
    return Sampling(
        max_new_tokens=options.max_new_tokens or cap,
        max_length=options.max_length,
        temperature=options.temperature,
        top_p=settings.top_p,
        top_k=options.top_k,
        repetition_penalty=settings.repetition_penalty,
        stop=stop if options.stop is None else tuple(options.stop),
        samples_per_prompt=samples,
    )


def write_raw(
    folder: Path,
    writer: Writer,
    prompts: Sequence[SynthesisPrompt],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    generator: Generator,
    *,
    seed: int,
    progress: Progress,
    first: Sequence[Row] | None = None,
    only_first: bool = False,
) -> None:
    """Writes `raw.jsonl` and `counts.json`.

    Args:
        folder: Of the step; chunks that stand in it are not made again.
        writer: Of the task.
        prompts: Of the writer, those with equal first numbers together.
        sampling: Of the writer.
        tokenizer: Of the model that writes.
        generator: Over that model.
        seed: Of the run.
        progress: Where to show what goes on.
        first: The rows of the first chunk, where they were made before.
        only_first: Whether nothing but the first chunk is wanted.
    """
    task = writer.task.name
    chunks = chunks_of(prompts, sampling.samples_per_prompt)
    if only_first:
        chunks = chunks[:1]
        prompts = chunks[0]
    done = [sum(map(len, chunks[:number])) for number in range(len(chunks))]

    def produce(number: int, chunk: Sequence[SynthesisPrompt], shown: Counted) -> Iterator[Row]:
        if first is not None and number == 0:
            yield from first
            return
        ids = [writer.prompt_ids(prompt, tokenizer) for prompt in chunk]
        drawn = generator.generate(
            ids,
            replace(sampling, seed=derive(seed, "synthesis", task, "samples", number)),
            shown.call(done[number]),
        )
        for prompt, completions in zip(chunk, drawn, strict=True):
            yield from _distinct(prompt, completions)

    most = len(prompts) * sampling.samples_per_prompt * min(sampling.max_new_tokens, sampling.max_length or math.inf)
    if not sampling.stop and most > _MANY_TOKENS:
        progress.say(
            f"synthesizing {task}: {len(prompts):,} prompts, {sampling.samples_per_prompt} samples of each, no mark "
            f"to stop at: up to {most:,} tokens where the model does not end by itself; the method's max_prompts and "
            "max_new_tokens bound that."
        )
    with progress.step(f"synthesizing {task}", len(prompts)) as tick:
        shown = Counted(tick)
        rows = in_chunks(folder, "raw", chunks, lambda number, chunk: produce(number, chunk, shown))
    write_json(
        folder / "counts.json",
        {"prompts": len(prompts), "samples_per_prompt": sampling.samples_per_prompt, "raw": len(rows)},
    )


def chunks_of(prompts: Sequence[SynthesisPrompt], samples: int) -> list[list[SynthesisPrompt]]:
    """Whole groups of one first demonstration, joined until a chunk has `CHUNK_SEQUENCES` continuations."""
    chunks: list[list[SynthesisPrompt]] = [[]]
    for _, group in groupby(prompts, key=lambda prompt: prompt.subset[:1]):
        if len(chunks[-1]) * samples >= CHUNK_SEQUENCES:
            chunks.append([])
        chunks[-1] += group
    return chunks


def _distinct(prompt: SynthesisPrompt, completions: Sequence[Completion]) -> Iterator[Row]:
    """One row for each different text among the samples of a prompt."""
    texts: set[str] = set()
    for sample, completion in enumerate(completions):
        if completion.text not in texts:
            texts.add(completion.text)
            yield {
                "inputs": prompt.text,
                "outputs": completion.text,
                "perm_idx": list(prompt.subset),
                "sample": sample,
                "finish_reason": completion.finish_reason,
            }
