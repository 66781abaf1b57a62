"""The training engine: one phase from its start, or from a checkpoint, to its end.

What a batch means is the objective's affair, what a method adds the influences'; this file owns the order of a step
and nothing else: read ahead, forward and backward passes part by part, changed gradients, penalties, clipping, the
optimizers, the averages, a look at the losses, a checkpoint. Lean on purpose: batches are read and laid out one step
ahead, nothing is copied from the device between looks, and freed memory is kept for the next step (on Linux; measured:
1.3 times the tokens/s of a small model on a CPU). Each update runs at the rate that the schedule gives for the number
of finished steps and draws from a random stream seeded by its number, so neither is state.

When memory runs out in a step, it is computed again in parts of half as many tokens, and so are those after it; when
gradients overflow float16, at half the scale of the loss.
"""

from __future__ import annotations

import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from everlearn.errors import UserError
from everlearn.models.batching import ran_out_of_memory, release_device_memory
from everlearn.training.influence import Influence, OptimizerStep
from everlearn.training.loss_scale import LEAST, LossScale
from everlearn.training.processes import Processes, is_sharded, part_of, without_exchange
from everlearn.training.sharding import Lockstep
from everlearn.training.stopwatch import Stopwatch

if TYPE_CHECKING:
    from everlearn.training.rows import EncodedRow

Result = TypeVar("Result")

Row = dict[str, float]
"""One step of the history: `step` (finished before it), `loss`, `learning_rate`, `seconds` since training (re)began,
`term` and `penalty` where influences have any, and what they have noted."""


class Objective(Protocol):
    """What a batch means and what its loss is."""

    def read(self, step: int) -> Any:
        """This process's share of a step's batch; called by another thread, one step ahead."""
        ...

    def parts(self, batch: Any, most_tokens: int) -> Sequence[Any]:
        """The batch in parts that are computed one after the other."""
        ...

    def loss(self, part: Any, batch: Any) -> Tensor:
        """A part's share of the loss of the whole step; the shares of all parts add up to it.

        A scalar, or two summands: the loss and what influences add to it.
        """
        ...

    def spare(self, batch: Any) -> Any:
        """A small part, for a process that computes along with others without rows of its own."""
        ...

    def rows(self, batch: Any) -> Sequence[EncodedRow]:
        """The rows of a batch, for influences."""
        ...

    def tokens(self, batch: Any) -> tuple[int, int]:
        """All tokens of a batch and those of its longest row, which cannot be divided."""
        ...


@dataclass(frozen=True)
class Pace:
    """How a phase goes.

    Attributes:
        steps: Optimizer steps of the whole phase.
        peak: Learning rate that the schedule multiplies.
        schedule: Factor of the rate for the number of finished steps.
        max_grad_norm: Gradients are clipped to it.
        seed_of: Seed of a step's random stream (dropout).
        most_tokens: Tokens computed at once.
        look_every: Steps between looks at the losses, each of which waits for the device.
        checkpoint_every: Steps between checkpoints; None: none.
        done: Steps finished already.
        remedy: What to do when memory does not suffice for one row.
        reads_ahead: Whether a thread reads the next batch meanwhile; not where reading takes less than handing over.
    """

    steps: int
    peak: float
    schedule: Callable[[int], float]
    max_grad_norm: float
    seed_of: Callable[[int], int]
    most_tokens: int
    look_every: int
    checkpoint_every: int | None = None
    done: int = 0
    remedy: str = ""
    reads_ahead: bool = True


class Engine:
    """Trains one phase.

    Args:
        model: In training mode on its device; `requires_grad` says which parameters move.
        objective: Its batches and their loss.
        optimizers: Of parts of the moving parameters that make up all of them (most often one), with the moments
            that belong to the present weights. A group's `rate_factor`, where it has one, multiplies its rate.
        pace: Length, rates, limits.
        processes: This process among all.
        module: What the objective calls, where its backward pass exchanges gradients with other processes; None: the
            model itself, whose gradients are exchanged after the passes of a step.
        influences: What methods add, already begun.
        watch: Gets the time that each of them takes.
        scale: Of the loss; None: 1.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizers: Sequence[torch.optim.Optimizer],
        pace: Pace,
        processes: Processes,
        *,
        module: nn.Module | None = None,
        influences: Sequence[Influence] = (),
        watch: Stopwatch | None = None,
        scale: LossScale | None = None,
    ) -> None:
        self.model, self.module = model, module or model
        self.objective, self.optimizers, self.pace = objective, optimizers, pace
        self.processes, self.influences = processes, influences
        self.watch = watch or Stopwatch(processes.device)
        self.scale = scale or LossScale(processes.device)
        self._exchanges = module is None and processes.count > 1
        self.most_tokens = pace.most_tokens
        self._parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._unread: list[tuple[int, Tensor, Tensor | None, dict[str, Tensor], float, float]] = []
        if processes.device.type == "cpu":
            keep_freed_memory()

    def run(self, look: Callable[[list[Row]], None], save: Callable[[int], None]) -> None:
        """Trains to the end of the phase.

        Args:
            look: Receives the history rows of finished steps, in every process.
            save: Called with the number of finished steps when a checkpoint is due, after their rows were seen.

        Raises:
            UserError: memory does not suffice for a single row.
        """
        pace = self.pace
        began = time.perf_counter()
        for number, batch, parts in self._ahead():
            rate = pace.peak * pace.schedule(number)
            loss = self._gradients(number, batch, parts)
            step = OptimizerStep(number, self.objective.rows(batch), self._parameters, rate)
            for influence in self.influences:
                with self.watch.of(influence.told_as):
                    influence.after_backward(step)
            penalty = self._penalty(step)
            self._clip()
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("rate_factor", 1.0)
                optimizer.step()
            for influence in self.influences:
                with self.watch.of(influence.told_as):
                    influence.after_step(step)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            self._unread.append((number, loss, penalty, step.notes, rate, time.perf_counter() - began))
            finished = number + 1
            is_last = finished == pace.steps
            saves = pace.checkpoint_every is not None and finished % pace.checkpoint_every == 0 and not is_last
            if finished % pace.look_every == 0 or saves or is_last:
                look(self._rows())
            if saves:
                save(finished)
        for influence in self.influences:
            with self.watch.of(influence.told_as):
                influence.finish()

    def _gradients(self, number: int, batch: Any, parts: Sequence[Any]) -> Tensor:
        """The gradients of a step, those of all processes; returns the loss.

        Raises:
            UserError: they are beyond the number format whatever the scale.
        """
        while True:
            loss = self._backward(number, batch, parts)
            if self._exchanges:
                self.processes.mean_gradients(list(self._parameters.values()))
            before = self.scale.value
            if self.scale.settle(self.optimizers):
                return loss
            if before <= LEAST:
                raise UserError(
                    f"the gradients of step {number + 1} of {self.pace.steps} are too large for float16: set "
                    "training.precision to float32, or lower training.learning_rate."
                )
            self.model.zero_grad()
            parts = self.objective.parts(batch, self.most_tokens)

    def _backward(self, number: int, batch: Any, parts: Sequence[Any]) -> Tensor:
        """Forward and backward passes of a step, with half the tokens at once until memory suffices."""
        while True:
            try:
                seed_device(self.processes.device, self.pace.seed_of(number))
                total = torch.zeros(2, device=self.processes.device)  # the loss, the terms
                for at, (part, counts) in enumerate(self._passes(parts, batch), 1):
                    with without_exchange(self.module, only=at < len(parts)):
                        loss = self.objective.loss(part, batch)
                        loss = loss if counts else 0.0 * loss
                        self.scale.scaled(loss.sum()).backward()
                    total[: loss.numel()] += loss.detach()
                return total
            except RuntimeError as error:
                if not ran_out_of_memory(error) or (self.processes.count > 1 and not self._exchanges):
                    raise
            self.model.zero_grad()  # outside the handler, which holds what was computed
            self._halve(*self.objective.tokens(batch))
            parts = self.objective.parts(batch, self.most_tokens)

    def _passes(self, parts: Sequence[Any], batch: Any) -> Iterable[tuple[Any, bool]]:
        """The parts of a batch and whether each counts."""
        if not self.processes.shares_weights:
            return ((part, True) for part in parts)
        return Lockstep(self.processes).parts(parts, lambda: self.objective.spare(batch))

    def _clip(self) -> None:
        """Shortens the gradient of all weights to the norm that it may have."""
        gradients = [weight.grad for weight in self._parameters.values() if weight.grad is not None]
        if not any(is_sharded(gradient) for gradient in gradients):
            nn.utils.clip_grad_norm_(self.model.parameters(), self.pace.max_grad_norm)
            return
        squares = torch.zeros(2, device=self.processes.device)  # of parts, of whole gradients
        for gradient in gradients:
            squares[0 if is_sharded(gradient) else 1] += part_of(gradient).float().square().sum()
        norm = (self.processes.sums({"parts": squares[:1].clone()})["parts"] + squares[1]).sqrt()
        for gradient in gradients:
            part_of(gradient).mul_((self.pace.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))

    def within_memory(self, compute: Callable[[int], Result], tokens: int, longest: int) -> Result:
        """What an influence asks for beside the passes of a step, with half the tokens at once until memory suffices.

        Args:
            compute: Given the most tokens to be computed at once.
            tokens: Of all rows.
            longest: Of the longest row.

        Raises:
            UserError: memory does not suffice for a single row.
        """
        while True:
            try:
                return compute(self.most_tokens)
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
            self._halve(tokens, longest)

    def _halve(self, tokens: int, longest: int) -> None:
        if self.processes.shares_weights:
            raise UserError(
                f"training ran out of memory on {self.processes.device} with {self.most_tokens:,} tokens at a time, "
                "and processes that share their weights (training.sharding: fsdp) compute no step again: set "
                f"training.micro_batch_tokens below {min(self.most_tokens, tokens):,}."
            )
        if self.most_tokens <= longest:
            raise UserError(
                f"training ran out of memory on {self.processes.device} with one row of up to {longest} tokens at a "
                f"time: {self.pace.remedy}."
            )
        self.most_tokens = max(longest, min(self.most_tokens, tokens) // 2)
        release_device_memory()

    def _penalty(self, step: OptimizerStep) -> Tensor | None:
        found, names = [], []
        for influence in self.influences:
            with self.watch.of(influence.told_as):
                term = influence.penalty(step.rows)
            if term is not None:
                found.append(term)
                names.append(influence.told_as)
        if not found:
            return None
        total = torch.stack(found).sum() if len(found) > 1 else found[0]
        with self.watch.of("+".join(dict.fromkeys(names))), without_exchange(self.module):
            total.backward()
        return total.detach()

    def _rows(self) -> list[Row]:
        """The steps since the last look, their losses moved from the device."""
        means = self.processes.mean(torch.stack([loss for _, loss, *_ in self._unread])).tolist()
        rows: list[Row] = []
        reads = any(influence.reads for influence in self.influences)
        for (loss, term), (number, _, penalty, notes, rate, seconds) in zip(means, self._unread, strict=True):
            row = {"step": number, "loss": loss, "learning_rate": rate, "seconds": seconds}
            if reads:
                row["term"] = term
            if penalty is not None:
                row["penalty"] = float(penalty)
            rows.append(row | {name: float(value) for name, value in notes.items()})
        self._unread.clear()
        return rows

    def _ahead(self) -> Iterator[tuple[int, Any, Sequence[Any]]]:
        """Batches of the steps still to do and their parts, read one step ahead by a thread."""

        def read(step: int) -> tuple[Any, int, Sequence[Any]]:
            most, batch = self.most_tokens, self.objective.read(step)
            return batch, most, self.objective.parts(batch, most)

        if not self.pace.reads_ahead:
            for step in range(self.pace.done, self.pace.steps):
                batch, _, parts = read(step)
                yield step, batch, parts
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, self.pace.done) if self.pace.done < self.pace.steps else None
            for step in range(self.pace.done, self.pace.steps):
                assert ahead is not None, "a step is read before it is trained"
                batch, most, parts = ahead.result()
                ahead = reader.submit(read, step + 1) if step + 1 < self.pace.steps else None
                yield step, batch, parts if most == self.most_tokens else self.objective.parts(batch, self.most_tokens)


def is_finite(row: Row) -> bool:
    """Whether a step's loss is a number."""
    return math.isfinite(whole_loss(row))


def whole_loss(row: Row) -> float:
    """A step's loss with all that was added to it."""
    return row["loss"] + row.get("term", 0.0) + row.get("penalty", 0.0)


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the generators that this device draws from (`torch.manual_seed` would queue work for absent ones)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def keep_freed_memory() -> None:
    """Tells the C library (glibc) not to return freed memory to the system after every step."""
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1
    library = ctypes.CDLL(None)
    library.mallopt(trim_threshold, largest)
    library.mallopt(mmap_threshold, 1 << 30)
