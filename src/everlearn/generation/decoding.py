"""The decoding loop: admits batches of prompts, steps all rows, retires finished ones.

It knows nothing of models: a `KeyValueState` computes logits, `choose` picks tokens and a `Stopper` ends rows.
Finished rows stay in the batch until they are an eighth of it, because taking rows out copies what the others have
cached; new prompts join a running batch where the state allows it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from everlearn.generation.prefix_tree import Node
from everlearn.generation.protocol import Sampling
from everlearn.generation.rows import History, Row
from everlearn.generation.sampling import UniformStream, choose
from everlearn.generation.stopping import Stopper

PAUSED = "paused"
"""Reason for which a row leaves a batch without being finished."""
DONE_SHARE = 8
"""Rows are taken out once one in so many is done; chosen here."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to complete.

    Attributes:
        index: In the call.
        token_ids: To be read.
        limit: How many more tokens it may get.
        pause: Tokens after which its rows leave the batch unfinished; 0: they stay.
        row: A paused row that goes on; the tokens that it has written are the end of `token_ids`.
    """

    index: int
    token_ids: Sequence[int]
    limit: int
    pause: int = 0
    row: Row | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are computed together, and the prefix they share, where one is computed beforehand."""

    prompts: Sequence[Prompt]
    node: Node | None = None


class KeyValueState(Protocol):
    """The cached keys and values of a running batch, whose rows have an order."""

    def takes(self, batch: Batch, copies: int) -> bool:
        """Whether these prompts may join now; always true while there are no rows."""
        ...

    def admit(self, batch: Batch, copies: int) -> Tensor:
        """Appends `copies` rows for each prompt; (prompts, vocabulary) logits of the first new tokens."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each row, (rows,); (rows, vocabulary) logits of the next ones."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these, which come in ascending order."""
        ...


class Decoder:
    """Completes batches of prompts on one state.

    Args:
        state: Computes logits.
        sampling: How to decode.
        stopper: Ends rows.
        finish: Called with each row and the reason for its end.
        wrote: Called with the number of tokens that were added to rows.
        device: Of the state's tensors.
    """

    def __init__(
        self,
        state: KeyValueState,
        sampling: Sampling,
        stopper: Stopper,
        finish: Callable[[Row, str], None],
        wrote: Callable[[int], None],
        device: torch.device,
    ) -> None:
        self._state = state
        self._sampling = sampling
        self._stopper = stopper
        self._finish = finish
        self._wrote = wrote
        self._device = device
        self._rows: list[Row] = []
        self._done = 0
        self._history = History(device) if sampling.repetition_penalty != 1.0 else None
        self._last = torch.empty(0, dtype=torch.long, device=device)  # (rows,) tokens not yet fed

    def run(self, batches: Iterable[Batch], copies: int) -> None:
        """Completes all prompts, `copies` times each; batches are admitted in their order."""
        waiting = deque(batches)
        while waiting or self._rows:
            while waiting and (not self._rows or self._state.takes(waiting[0], copies)):
                self._admit(waiting.popleft(), copies)
            if self._rows:
                logits = self._state.step(self._last)
                self._last = self._extend(logits, self._rows, 0)
                self._retire()

    def _admit(self, batch: Batch, copies: int) -> None:
        prompts = batch.prompts
        logits = self._state.admit(batch, copies).repeat_interleave(copies, dim=0)
        sampled = self._sampling.temperature > 0
        new = [
            p.row
            or Row(
                p.index,
                sample,
                p.limit,
                UniformStream(self._sampling.seed, p.index, sample) if sampled else None,
                pause=p.pause,
            )
            for p in prompts
            for sample in range(copies)
        ]
        first = len(self._rows)
        self._rows += new
        if self._history is not None:
            self._history.add([p.token_ids for p in prompts for _ in range(copies)])
        self._last = torch.cat([self._last, self._extend(logits, new, first)])
        self._retire()

    def _extend(self, logits: Tensor, rows: list[Row], first: int) -> Tensor:
        """Gives each of these rows (those from `first` on) its next token."""
        uniforms = None
        if self._sampling.temperature > 0:
            uniforms = [row.uniforms.next() for row in rows if row.uniforms is not None]
        history = self._history.seen(first) if self._history is not None else None
        chosen = choose(logits, self._sampling, history, uniforms)
        if self._history is not None:
            self._history.append(chosen, first)
        self._wrote(sum(not row.done for row in rows))
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if row.done:
                continue
            row.token_ids.append(token)
            reason = self._stopper.reason(row.token_ids)
            if reason is None and len(row.token_ids) >= row.limit:
                reason = "length"
            if reason is None and len(row.token_ids) == row.pause:
                reason = PAUSED
            if reason is not None:
                row.done = True
                self._done += 1
                self._finish(row, reason)
        return chosen

    def _retire(self) -> None:
        if self._done * DONE_SHARE < len(self._rows) or not self._done:
            return
        alive = [i for i, row in enumerate(self._rows) if not row.done]
        self._rows = [self._rows[i] for i in alive]
        self._done = 0
        kept = torch.tensor(alive, dtype=torch.long, device=self._device)
        self._last = self._last[kept]
        self._state.keep(alive)
        if self._history is not None:
            self._history.keep(kept)
