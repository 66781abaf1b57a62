"""Generation with a Transformers model in this process, on a CPU or a GPU.

The gain over `generate` lies in what is not computed: rows end as soon as they are complete (end token, stop
string, limit), finished rows leave the batch, equal greedy prompts are completed once. Rows are computed together only
where each is computed as it would be alone (`models/sides.py`, `plain_state.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from everlearn.crew import Crew
from everlearn.errors import UserError
from everlearn.generation.blending import BlendedState
from everlearn.generation.decoding import PAUSED, Batch, Decoder, KeyValueState, Prompt
from everlearn.generation.memory import cached_tokens
from everlearn.generation.plain_state import PlainState, bears_padding
from everlearn.generation.prefix_tree import Node, plan
from everlearn.generation.prompts import first_of_equals, room_of
from everlearn.generation.protocol import Completion, GenerationProgress, Generator, Sampling
from everlearn.generation.rows import Row
from everlearn.generation.shared_cache import attending, window_of
from everlearn.generation.shared_state import SharedState
from everlearn.generation.stopping import Stopper, end_tokens
from everlearn.models.adapters import adapter_off, inner_model
from everlearn.models.batching import ran_out_of_memory, release_device_memory, tokens_at_once
from everlearn.models.kinds import soft_prompt
from everlearn.models.sides import Sides
from everlearn.usage import wrote

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from everlearn.models.loading import LoadedModel

ROWS = {"cuda": 256}
"""Rows in one batch, by the type of the device."""
ROWS_ELSEWHERE = 128

PREFILL_TOKENS = 2048
"""Prompt tokens computed in one forward pass on a GPU."""

JOINING_SHARE = 4
"""Prompts join a running batch once one in so many of its rows is free."""


class TransformersGenerator:
    """A generation engine bound to one model.

    Args:
        model: Any causal language model, with or without adapters; its state at each call is what counts.
        tokenizer: Of the model.
        context_length: Most tokens of prompt and completion; None: what the model's configuration says.
        max_batch_tokens: Most tokens cached at a time; None: what fits into a share of the free memory.
        max_rows: Most completions in one batch; None: by the device.
        crew: Processes that have the same model and are asked for the same; each completes some of the prompts.
        base: Gives the base model where a blend is asked for; None: it is the model without its adapters.

    When memory runs out, these limits are halved for good and what is not yet complete begins again.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_length: int | None = None,
        max_batch_tokens: int | None = None,
        max_rows: int | None = None,
        crew: Crew | None = None,
        base: Callable[[], PreTrainedModel | PeftModel] | None = None,
    ) -> None:
        self._model = model
        self._crew = crew or Crew()
        self._tokenizer = tokenizer
        self._base = base
        settings = model.config.get_text_config()
        self._context = context_length or getattr(settings, "max_position_embeddings", None)
        self._max_batch_tokens = max_batch_tokens
        self.shares_prefixes: bool | None = None
        self._bears_padding = True
        inner = inner_model(model, sees_prompt=True)
        self._sides = Sides(inner)
        self._window = window_of(inner)
        self._max_rows = max_rows or ROWS.get(model.device.type, ROWS_ELSEWHERE)
        self._prefill_tokens = tokens_at_once(model.device.type, PREFILL_TOKENS)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: GenerationProgress | None = None
    ) -> list[list[Completion]]:
        """Completes every prompt; see `Generator.generate`."""
        wanted = [Prompt(i, ids, room_of(i, len(ids), sampling, self._context)) for i, ids in enumerate(prompts)]
        if not wanted:
            return []
        greedy = sampling.temperature == 0.0
        copies = 1 if greedy else sampling.samples_per_prompt
        first = first_of_equals(prompts) if greedy else list(range(len(wanted)))
        distinct = [prompt for prompt in wanted if first[prompt.index] == prompt.index]
        if self._crew.count > 1:
            distinct = self._share(distinct)
        ends = end_tokens(self._model, self._tokenizer) | set(sampling.end_ids)
        stopper = Stopper(self._tokenizer, sampling.stop, ends)
        own = list(distinct)
        collector = _Collector(stopper, copies, first, progress, self._crew.count)
        with torch.inference_mode(), _evaluating(self._model):
            while distinct:
                cached = self._max_batch_tokens or cached_tokens(inner_model(self._model, sees_prompt=True))
                has_room = True
                try:
                    self._complete(distinct, copies, cached, sampling, stopper, collector)
                except RuntimeError as error:
                    if not ran_out_of_memory(error):
                        raise
                    has_room = False
                if not has_room:  # outside the handler, which holds what was computed
                    self._halve(cached)
                distinct = [prompt for prompt in distinct if collector.begins_again(prompt.index)]
        completed = collector.completions
        for found in self._crew.gather({prompt.index: completed[prompt.index] for prompt in own}):
            for index, completions in found.items():
                completed[index] = completions
        wrote(sum(len(one.token_ids) for index in set(first) for one in completed[index]))
        return [completed[i] * (sampling.samples_per_prompt // copies) for i in first]

    def _share(self, prompts: list[Prompt]) -> list[Prompt]:
        """This process's prompts: every n-th, so that shares have like lengths."""
        longest = sorted(prompts, key=lambda prompt: -len(prompt.token_ids))
        return longest[self._crew.rank :: self._crew.count]

    def _complete(
        self,
        prompts: list[Prompt],
        copies: int,
        cached: int,
        sampling: Sampling,
        stopper: Stopper,
        collector: _Collector,
    ) -> None:
        """Completes distinct prompts with at most so many tokens cached at a time."""
        inner = inner_model(self._model, sees_prompt=True)
        other = inner if sampling.blend is None else self._other()
        cached = cached if sampling.blend is None else max(1, cached // 2)
        before = soft_prompt(self._model)
        if self.shares_prefixes is None:
            self.shares_prefixes = before is None and SharedState.fits(inner)
            self._bears_padding = self.shares_prefixes or bears_padding(inner)
        groups: dict[_Company, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(self._company(prompt), []).append(prompt)
        pad = self._tokenizer.pad_token_id or 0
        paused: list[Row] = []

        def finish(row: Row, reason: str) -> None:
            if reason == PAUSED:
                paused.append(row)
            else:
                collector.add(row, reason)

        def state_of(model: PreTrainedModel, company: _Company, rows: int, before: Tensor | None) -> KeyValueState:
            if company.is_shared:
                return SharedState(model, pad, min(self._max_rows, rows), cached, company.last)
            return PlainState(model, pad, company.last, is_padded=company.length is None, before=before)

        def run(company: _Company, members: list[Prompt], copies: int) -> None:
            state = state_of(inner, company, len(members) * copies, before)
            if sampling.blend is not None:
                beside = state_of(other, company, len(members) * copies, None)
                state = BlendedState(state, beside, self._as_other, sampling.blend)
            # a prefix alone may be on another side than the prompts that begin with it
            has_prefixes = company.is_shared and company.side == 0
            if has_prefixes:
                batches = self._shared_batches(members, copies, cached)
            else:
                batches = self._batches(members, copies, cached, joins=company.is_shared)
            decoder = Decoder(state, sampling, stopper, finish, collector.wrote, self._model.device)
            with ExitStack() as shared:
                for model in {inner, other} if company.is_shared else ():
                    shared.enter_context(attending(model))
                decoder.run(batches, copies)

        for company, members in groups.items():
            run(company, [self._paused(prompt) if company.is_shared else prompt for prompt in members], copies)
        beyond: dict[_Company, list[Prompt]] = {}
        read = {prompt.index: prompt.token_ids for prompt in prompts}
        for row in paused:  # their windows no longer hold all that they have read
            row.done, ids = False, [*read[row.prompt], *row.token_ids]
            going_on = Prompt(row.prompt, ids, row.limit - len(row.token_ids), row=row)
            beyond.setdefault(self._company(going_on), []).append(going_on)
        for company, members in beyond.items():
            run(company, members, 1)

    def _other(self) -> PreTrainedModel:
        """The base model, which computes within `_as_other`.

        Raises:
            UserError: there is none, or it has another vocabulary.
        """
        from peft import PeftModel

        own = inner_model(self._model, sees_prompt=True)
        if isinstance(self._model, PeftModel):
            return own
        if self._base is None:
            raise UserError("a mixture with the base model needs that model beside the one that was tuned.")
        other = inner_model(self._base())
        sizes = [model.config.get_text_config().vocab_size for model in (other, own)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"a mixture of two models needs one vocabulary, but that of the base has {sizes[0]:,} tokens and that "
                f"of the tuned model {sizes[1]:,}: name the base that the model was tuned from (model.base)."
            )
        return other

    def _as_other(self) -> AbstractContextManager[None]:
        """Within it, the model that `_other` gave computes as the base."""
        from peft import PeftModel

        return adapter_off(self._model) if isinstance(self._model, PeftModel) else nullcontext()

    def _paused(self, prompt: Prompt) -> Prompt:
        """The prompt with the place where its rows would leave the window; the last token is never fed."""
        room = prompt.limit if self._window is None else self._window - len(prompt.token_ids) + 1
        return prompt if room >= prompt.limit else replace(prompt, pause=room)

    def _company(self, prompt: Prompt) -> _Company:
        """With which other prompts this one may be computed."""
        length = len(prompt.token_ids)
        side = self._sides.of(length)
        end = self._sides.end(side)
        crosses = self._sides.of(length + prompt.limit - 1) != side  # the last token is never fed
        if crosses or not self._bears_padding:
            return _Company(side, None, length)
        is_within = self._window is None or length <= self._window
        return _Company(side, None if end is None else end - 2, is_shared=bool(self.shares_prefixes) and is_within)

    def _halve(self, cached: int) -> None:
        """Lowers all limits after memory ran out with so many tokens cached.

        Raises:
            UserError: a single row was too much.
        """
        if self._max_rows == 1:
            raise UserError(
                f"generation ran out of memory on {self._model.device} with one row at a time: lower "
                "evaluation.max_new_tokens, shorten the prompts, set model.dtype to bfloat16, or take a smaller model."
            )
        self._max_rows //= 2
        self._max_batch_tokens = max(1, cached // 2)
        self._prefill_tokens = max(1, self._prefill_tokens // 2)
        release_device_memory()

    def _shared_batches(self, prompts: list[Prompt], copies: int, cached: int) -> Iterator[Batch]:
        """Batches in the order of the prefix tree."""
        for node, members in plan([prompt.token_ids for prompt in prompts], copies):
            yield from self._batches([prompts[i] for i in members], copies, cached, node)

    def _batches(
        self, prompts: list[Prompt], copies: int, cached: int, node: Node | None = None, *, joins: bool = True
    ) -> Iterator[Batch]:
        """Prompts below one node in batches of similar lengths; smaller ones where the next can join them soon."""
        most_rows = max(1, self._max_rows // JOINING_SHARE) if joins else self._max_rows
        shared = node.depth if node else 0
        batch: list[Prompt] = []
        longest = columns = 0
        for prompt in sorted(prompts, key=lambda prompt: -len(prompt.token_ids)):
            length = len(prompt.token_ids) - shared
            longest, columns = max(longest, length), max(columns, length + prompt.limit)
            rows = (len(batch) + 1) * copies
            full = rows > most_rows or rows * columns > cached
            if batch and (full or (len(batch) + 1) * longest > self._prefill_tokens):
                yield Batch(batch, node)
                batch, longest, columns = [], length, length + prompt.limit
            batch.append(prompt)
        yield Batch(batch, node)


def make_generator(
    loaded: LoadedModel, crew: Crew | None = None, base: Callable[[], LoadedModel] | None = None
) -> Generator:
    """The engine for a loaded model; `base` gives the model that it blends with where it has no adapters."""
    return TransformersGenerator(
        loaded.model,
        loaded.tokenizer,
        context_length=loaded.context_length,
        crew=crew,
        base=base and (lambda: base().model),
    )


@dataclass(frozen=True, slots=True)
class _Company:
    """Prompts that may be computed together.

    Attributes:
        side: Of the model (`Sides`), on which they begin.
        last: The last position of this side; None: that of the context.
        length: That all of them have, where padding or a change of side within the answer demands it.
        is_shared: Whether their common beginnings are computed once.
    """

    side: int
    last: int | None
    length: int | None = None
    is_shared: bool = False


class _Collector:
    """Turns finished rows into completions and reports how far the work is, judged by one of `processes` shares."""

    def __init__(
        self, stopper: Stopper, copies: int, first: list[int], progress: GenerationProgress | None, processes: int
    ) -> None:
        self._stopper = stopper
        self._progress = progress
        self._copies = copies
        self._processes = processes
        self._left = [copies] * len(first)
        self._weights = [0] * len(first)
        for index in first:
            self._weights[index] += 1
        self._finished = self._tokens = 0
        self.completions = [[Completion("", (), "length")] * copies for _ in first]

    def begins_again(self, prompt: int) -> bool:
        """Whether a prompt is not complete; then all its rows are awaited anew."""
        if self._left[prompt]:
            self._left[prompt] = self._copies
        return self._left[prompt] > 0

    def add(self, row: Row, reason: str) -> None:
        """Takes a finished row."""
        self.completions[row.prompt][row.sample] = Completion(*self._stopper.finish(row.token_ids, reason))
        self._left[row.prompt] -= 1
        if self._left[row.prompt] == 0:
            self._finished += self._weights[row.prompt]
            self._tell()

    def wrote(self, tokens: int) -> None:
        """Counts tokens: a slow model's first answers are long in coming."""
        self._tokens += tokens
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            finished, tokens = self._finished * self._processes, self._tokens * self._processes
            self._progress(min(finished, len(self._weights)), len(self._weights), tokens)


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
