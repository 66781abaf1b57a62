"""Generation with a Transformers model in this process, on a CPU or a GPU.

The gain over `generate` lies in what is not computed: rows end as soon as they are complete (end token, stop
string, limit), finished rows leave the batch, equal greedy prompts are completed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from everlearn.errors import UserError
from everlearn.generation.decoding import Decoder, Prompt
from everlearn.generation.plain_state import PlainState
from everlearn.generation.protocol import Completion, GenerationProgress, Generator, Sampling
from everlearn.generation.rows import Row
from everlearn.generation.stopping import Stopper, end_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from everlearn.models.loading import LoadedModel

ROWS = {"cuda": 256}
"""Rows in one batch, by the type of the device."""
ROWS_ELSEWHERE = 64


class TransformersGenerator:
    """A generation engine bound to one model.

    Args:
        model: Any causal language model, with or without adapters; its state at each call is what counts.
        tokenizer: Of the model.
        context_length: Most tokens of prompt and completion; None: what the model's configuration says.
        max_batch_tokens: Most tokens cached at a time; None: what fits into a share of the free memory.
        max_rows: Most completions in one batch; None: by the device.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_length: int | None = None,
        max_batch_tokens: int | None = None,
        max_rows: int | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        settings = model.config.get_text_config()
        self._context = context_length or getattr(settings, "max_position_embeddings", None)
        self._max_batch_tokens = max_batch_tokens or 65536
        self._max_rows = max_rows or ROWS.get(model.device.type, ROWS_ELSEWHERE)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: GenerationProgress | None = None
    ) -> list[list[Completion]]:
        """Completes every prompt; see `Generator.generate`."""
        wanted = [Prompt(i, ids, self._limit(i, len(ids), sampling)) for i, ids in enumerate(prompts)]
        if not wanted:
            return []
        greedy = sampling.temperature == 0.0
        copies = 1 if greedy else sampling.samples_per_prompt
        first = _first_of_equals(wanted) if greedy else list(range(len(wanted)))
        distinct = [prompt for prompt in wanted if first[prompt.index] == prompt.index]
        ends = end_tokens(self._model, self._tokenizer) | set(sampling.end_ids)
        stopper = Stopper(self._tokenizer, sampling.stop, ends)
        collector = _Collector(stopper, copies, first, progress)
        with torch.inference_mode(), _evaluating(self._model):
            state = PlainState(_inner(self._model), self._tokenizer.pad_token_id or 0)
            decoder = Decoder(state, sampling, stopper, collector.add, self._model.device)
            decoder.run(self._batches(distinct, copies), copies)
        return [collector.completions[i] * (sampling.samples_per_prompt // copies) for i in first]

    def _limit(self, index: int, length: int, sampling: Sampling) -> int:
        """How many tokens may be added to this prompt."""
        if length == 0:
            raise UserError(f"prompt {index} (counted from 0) has no tokens: give every prompt at least one token.")
        limit = sampling.max_new_tokens
        for name, most in (("the model's context", self._context), ("max_length", sampling.max_length)):
            if most is None:
                continue
            if length >= most:
                raise UserError(
                    f"prompt {index} (counted from 0) has {length} tokens and leaves no room for an answer in {name} "
                    f"of {most} tokens: shorten it to at most {most - 1} tokens, or "
                    + ("use a model with a longer context." if name != "max_length" else "raise max_length.")
                )
            limit = min(limit, most - length)
        return max(1, limit)

    def _batches(self, prompts: list[Prompt], copies: int) -> Iterator[list[Prompt]]:
        batch: list[Prompt] = []
        longest = 0
        for prompt in sorted(prompts, key=lambda prompt: -len(prompt.token_ids)):
            longest = max(longest, len(prompt.token_ids) + prompt.limit)
            rows = (len(batch) + 1) * copies
            if batch and (rows > self._max_rows or rows * longest > self._max_batch_tokens):
                yield batch
                batch, longest = [], len(prompt.token_ids) + prompt.limit
            batch.append(prompt)
        yield batch


def make_generator(loaded: LoadedModel) -> Generator:
    """The engine for a loaded model."""
    return TransformersGenerator(loaded.model, loaded.tokenizer, context_length=loaded.context_length)


class _Collector:
    """Turns finished rows into completions and reports how far the work is."""

    def __init__(self, stopper: Stopper, copies: int, first: list[int], progress: GenerationProgress | None) -> None:
        self._stopper = stopper
        self._progress = progress
        self._left = [copies] * len(first)
        self._weights = [0] * len(first)
        for index in first:
            self._weights[index] += 1
        self._finished = 0
        self.completions = [[Completion("", (), "length")] * copies for _ in first]

    def add(self, row: Row, reason: str) -> None:
        """Takes a finished row."""
        self.completions[row.prompt][row.sample] = Completion(*self._stopper.finish(row.token_ids, reason))
        self._left[row.prompt] -= 1
        if self._left[row.prompt] == 0:
            self._finished += self._weights[row.prompt]
            if self._progress is not None:
                self._progress(self._finished, len(self._weights))


def _first_of_equals(prompts: list[Prompt]) -> list[int]:
    """For each prompt the index of the first with the same tokens."""
    seen: dict[tuple[int, ...], int] = {}
    return [seen.setdefault(tuple(prompt.token_ids), prompt.index) for prompt in prompts]


def _inner(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The Transformers model within, adapters in place: one wrapper less on every step."""
    base: Callable[[], PreTrainedModel] | None = getattr(model, "get_base_model", None)
    return base() if base is not None else model


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout and gradient checkpointing are off; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
