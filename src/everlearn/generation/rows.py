"""The rows of a batch: unfinished completions, their random streams and the tokens seen so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from everlearn.generation.sampling import UniformStream


@dataclass(slots=True)
class Row:
    """One completion in the making.

    Attributes:
        prompt: Index of its prompt in the call.
        sample: Index among the completions of its prompt.
        limit: Most tokens to generate.
        pause: Tokens after which it leaves the batch unfinished, to go on in another one; 0: it stays.
        uniforms: Its random stream; None when greedy.
        token_ids: Generated so far.
        done: Ended, but not yet taken out of the batch.
    """

    prompt: int
    sample: int
    limit: int
    uniforms: UniformStream | None
    token_ids: list[int] = field(default_factory=list)
    done: bool = False
    pause: int = 0


class History:
    """The tokens of prompt and completion of each row, for the repetition penalty.

    A short row is filled up with its own first token, which changes nothing: a token is penalised once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ids = torch.empty((0, 0), dtype=torch.long, device=device)  # (rows, capacity)
        self._lengths = torch.empty(0, dtype=torch.long, device=device)
        self._longest = 0

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Appends rows that begin with these prompts."""
        width = self._ids.shape[1]
        longest = max(len(prompt) for prompt in prompts)
        if longest > width:
            self._widen(longest)
            width = longest
        padded = [[*prompt, *([prompt[0]] * (width - len(prompt)))] for prompt in prompts]
        self._ids = torch.cat([self._ids, torch.tensor(padded, device=self._device)])
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        self._lengths = torch.cat([self._lengths, lengths])
        self._longest = max(self._longest, longest)

    def append(self, tokens: Tensor, first: int = 0) -> None:
        """Adds one token to every row from `first` on."""
        if self._longest == self._ids.shape[1]:
            self._widen(2 * self._longest)
        self._ids[first:].scatter_(1, self._lengths[first:, None], tokens[:, None])
        self._lengths[first:] += 1
        self._longest = int(self._lengths.max())

    def seen(self, first: int = 0) -> Tensor:
        """(rows, longest) ids of the rows from `first` on."""
        return self._ids[first:, : self._longest]

    def keep(self, rows: Tensor) -> None:
        """Drops all other rows."""
        self._ids, self._lengths = self._ids[rows], self._lengths[rows]

    def _widen(self, width: int) -> None:
        count, old = self._ids.shape
        if count:
            self._ids = torch.cat([self._ids, self._ids[:, :1].expand(-1, width - old)], dim=1)
        else:
            self._ids = self._ids.new_empty((0, width))
