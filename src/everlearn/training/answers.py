"""The objective `answers`: rows of prompt and answer, the loss on the answers' tokens.

Without groups of their own the loss of a step is the mean over all its answer tokens, as published (arXiv 2403.01244,
spec section 5: rows have no weights). Groups may enter with a weight and a mean of their own
(`everlearn.data.mixture`); whatever they are, a row's share is a factor of its summed cross-entropy that depends on
the rows of the whole step alone, so a batch may be cut in parts or shared out over processes with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Module

from everlearn.data.mixture import Group, Mixture
from everlearn.errors import RecipeError, UserError
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.influence import Influence, Seen
from everlearn.training.look_ahead import LookAhead
from everlearn.training.packing import Packing
from everlearn.training.processes import Processes
from everlearn.training.row_factors import row_factors, shares_of
from everlearn.training.row_order import Batches, Following, Passes
from everlearn.training.rows import EncodedRow
from everlearn.training.sharding import Lockstep, Pass
from everlearn.training.stopwatch import Stopwatch

Part = Packing | list[EncodedRow]


class RowLoss(Protocol):
    """Computes the losses of rows (`everlearn.training.answer_loss.AnswerLoss`)."""

    @property
    def model(self) -> Module:
        """What is trained."""
        ...

    @property
    def lockstep(self) -> Lockstep | None:
        """Of processes that share the model's weights."""
        ...

    def micro_batches(self, rows: Sequence[EncodedRow], most_tokens: int) -> Sequence[Part]:
        """Rows in parts that are computed one after the other."""
        ...

    def __call__(self, part: Part) -> Tensor:
        """Summed cross-entropy of a part."""
        ...

    def seen(
        self,
        part: Part,
        weights: Sequence[float] | None,
        *,
        keeps_layers: bool = False,
        keeps_logits: bool = False,
    ) -> tuple[Tensor, Seen | None]:
        """The weighted sum, and what the forward pass has left for influences, where there is anything to see."""
        ...

    def look_again(self, part: Part) -> object:
        """An empty pass, beside those of other processes."""
        ...

    def number_format(self) -> AbstractContextManager[object]:
        """Autocast as the stage has it."""
        ...


@dataclass(frozen=True)
class Batch:
    """One step.

    Attributes:
        step: Of the phase.
        rows: This process's share.
        whole: All rows of the step.
        answers: Answer tokens of the whole step.
        factors: Of the summed cross-entropy of a row, by row; None: 1 / `answers` for all.
        units: What the term of each influence is divided by.
    """

    step: int
    rows: list[EncodedRow]
    whole: list[EncodedRow]
    answers: int
    factors: dict[int, float] | None
    units: tuple[int, ...]


def order_of(rows: int, mixture: Mixture, *, batch_size: int, epochs: float, seed: int) -> Batches:
    """The order of a stage's shuffled rows, its own and those shuffled among them; as long as the stage has steps."""
    within = sum(group.per_step or 0 for group in mixture.groups if group.is_within)
    if within >= batch_size:
        raise RecipeError(
            f"methods take {within} places of every step, and training.batch_size is {batch_size}: raise it above "
            f"{within}, so that the stage's own rows have places too, or have the methods take fewer."
        )
    return Batches(rows, batch_size=batch_size - within, epochs=epochs, seed=seed)


class Walk:
    """The rows of every step of a phase.

    Args:
        shuffled: The stage's own rows and those that are shuffled among them.
        groups: Rows of each group that has an order of its own, in the mixture's order of such groups.
        mixture: Says how groups meet.
        batch_size: Rows of a step (groups on top of it not counted).
        epochs: Passes over the shuffled rows.
        seed: Of the order.
        steps: From which step of the order to which (not included); None: all.
    """

    def __init__(
        self,
        shuffled: Sequence[EncodedRow],
        groups: Sequence[Sequence[EncodedRow]],
        mixture: Mixture,
        *,
        batch_size: int,
        epochs: float,
        seed: int,
        steps: tuple[int, int] | None = None,
    ) -> None:
        self._shuffled = shuffled
        apart = [group for group in mixture.groups if not group.is_shuffled]
        self.order = order_of(len(shuffled), mixture, batch_size=batch_size, epochs=epochs, seed=seed)
        self.first, self._end = steps or (0, len(self.order))
        assert self._end <= len(self.order), "a phase ends within its stage"
        self._drawn = [(rows, self._steps_of(group, seed)) for group, rows in zip(apart, groups, strict=True)]

    def _steps_of(self, group: Group, seed: int) -> Sequence[Sequence[int]]:
        """Row numbers of a group that has an order of its own, by step of the stage."""
        if group.follows:
            places = {(row.group, row.number): place for place, row in enumerate(self._shuffled)}
            return Following({places[other]: at for at, other in enumerate(group.follows)}, self.order)
        return group.drawn(self.order, seed) if group.drawn else Passes(group, len(self.order), seed)

    def __len__(self) -> int:
        """Optimizer steps of the phase."""
        return self._end - self.first

    def rows_of(self, step: int) -> list[EncodedRow]:
        """All rows of a step of the phase."""
        at = self.first + step
        rows = [self._shuffled[place] for place in self.order[at]]
        return rows + [group[place] for group, drawn in self._drawn for place in drawn[at]]


class Answers(Walk):
    """Batches of rows and their loss.

    Args:
        loss: Computes parts of batches.
        shuffled: As those that follow, of the walk.
        processes: This process among all.
        influences: Whose terms are added.
        watch: Gets the time that their terms take.
    """

    def __init__(
        self,
        loss: RowLoss,
        shuffled: Sequence[EncodedRow],
        groups: Sequence[Sequence[EncodedRow]],
        mixture: Mixture,
        *,
        batch_size: int,
        epochs: float,
        seed: int,
        processes: Processes,
        influences: Sequence[Influence] = (),
        watch: Stopwatch | None = None,
        steps: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(shuffled, groups, mixture, batch_size=batch_size, epochs=epochs, seed=seed, steps=steps)
        self._loss, self._processes = loss, processes
        self._watch = watch or Stopwatch(processes.device)
        self._readers = [influence for influence in influences if influence.reads]
        self._shares = shares_of(mixture)
        self._ahead: LookAhead | None = None
        if isinstance(loss, AnswerLoss) and loss.lockstep is None:
            self._ahead = LookAhead(loss, lambda step: self._own(self.rows_of(step)), len(self))

    def read(self, step: int) -> Batch:
        """This process's share of a step."""
        whole = self.rows_of(step)
        units = tuple(influence.units(whole) for influence in self._readers)
        answers = sum(row.answer_count for row in whole)
        return Batch(step, self._own(whole), whole, answers, row_factors(whole, self._shares), units)

    def _own(self, whole: list[EncodedRow]) -> list[EncodedRow]:
        """Every n-th row, the longest first, so that shares have like lengths."""
        if self._processes.count == 1:
            return whole
        longest = sorted(whole, key=lambda row: -len(row.ids))
        return longest[self._processes.rank :: self._processes.count]

    def parts(self, batch: Batch, most_tokens: int) -> Sequence[Part]:
        """The batch in parts that are computed one after the other.

        Raises:
            UserError: an influence needs the whole step in one part, and there are several processes or parts.
        """
        if self._ahead is not None:
            self._ahead.at_most(most_tokens)
        if not any(influence.needs_whole for influence in self._readers):
            return self._loss.micro_batches(batch.rows, most_tokens)
        longest = max((len(row.ids) for row in batch.rows), default=0)
        parts = self._loss.micro_batches(batch.rows, len(batch.rows) * longest)
        if len(parts) > 1 or self._processes.count > 1:
            where = f"{self._processes.count} processes" if self._processes.count > 1 else f"{len(parts)} parts"
            raise UserError(
                f"a step is computed in {where}, and what the method adds depends on all its rows together: choose "
                "balance: rows, with which every row counts by itself, or run one process."
            )
        return parts

    def loss(self, part: Part, batch: Batch) -> Tensor:
        """A part's share of the loss of the whole step, as often as there are processes (the mean is over them).

        With influences that read parts, the loss and the sum of their terms beside each other.
        """
        if batch.factors is None and not self._readers:
            return self._settled(part, self._loss(part) / (batch.answers / self._processes.count))
        rows = part.rows if isinstance(part, Packing) else part
        weights = None if batch.factors is None else [batch.factors[id(row)] for row in rows]
        with self._loss.number_format():
            keeps_layers = any(influence.reads_layers for influence in self._readers)
            keeps_logits = any(influence.reads_logits for influence in self._readers)
            total, seen = self._loss.seen(part, weights, keeps_layers=keeps_layers, keeps_logits=keeps_logits)
            if seen is not None and self._ahead is not None and isinstance(part, Packing):
                seen = replace(seen, ahead=partial(self._ahead.states, batch.step, part.rows))
            total = total / (batch.answers if weights is None else 1)
            terms = torch.zeros_like(total)
            for influence, units in zip(self._readers, batch.units, strict=True):
                assert seen is not None, "influences that look at parts are refused where there is nothing to see"
                with self._watch.of(influence.told_as):
                    term = influence.term(seen)
                if term is not None:
                    terms = terms + term / max(units, 1)
        return self._settled(part, torch.stack([total, terms]) * self._processes.count)

    def _settled(self, part: Part, loss: Tensor) -> Tensor:
        """The loss, when no other process needs this one for anything before the backward pass."""
        if self._loss.lockstep is not None:
            for _ in self._loss.lockstep.before(Pass.BACKWARD):
                self._loss.look_again(part)
        return loss

    def spare(self, batch: Batch) -> Part:
        """The shortest row of the step."""
        return self._loss.micro_batches([min(batch.whole, key=lambda row: len(row.ids))], 1)[0]

    def rows(self, batch: Batch) -> Sequence[EncodedRow]:
        """All rows of the step, whichever process computes them."""
        return batch.whole

    def tokens(self, batch: Batch) -> tuple[int, int]:
        """Tokens of this process's share, and of its longest row."""
        lengths = [len(row.ids) for row in batch.rows]
        return sum(lengths), max(lengths, default=0)

    def gradients_of(self, rows: Sequence[EncodedRow], most_tokens: int, scale: float = 1.0) -> dict[str, Tensor]:
        """The gradient of the mean answer loss of rows by parameter name, float32; the model's own stay as they are.

        The loss is multiplied by the scale in between, which matters to float16 alone.
        The model is in training mode, so dropout acts: its masks follow from the stream of the step, after its passes.
        All processes ask for it at the same moment, and each computes its share.
        """
        named = {name: weight for name, weight in self._loss.model.named_parameters() if weight.requires_grad}
        answers = sum(row.answer_count for row in rows)
        total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in named.items()}
        own = rows[self._processes.rank :: self._processes.count]
        parts = self._loss.micro_batches(own, most_tokens)
        passes: Iterable[tuple[Part, bool]] = ((part, True) for part in parts)
        if self._loss.lockstep is not None:
            shortest = min(rows, key=lambda row: len(row.ids))
            passes = self._loss.lockstep.parts(parts, lambda: self._loss.micro_batches([shortest], 1)[0])
        for part, counts in passes:
            loss = self._settled(part, self._loss(part) * (scale / answers))
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None and counts:
                    total[name] += gradient / scale
        return self._processes.sums(total)
