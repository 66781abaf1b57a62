"""The pre-training loop: one segment of a plan from its start, or from a checkpoint, to its end.

Lean on purpose: blocks without padding come from memory-mapped files one step ahead, the optimizer is fused, nothing
is copied from the device between flushes of the log, and on Linux freed memory is kept for the next step instead of
being given back to the system and cleared again (measured: 1.3 times the tokens/s of a small model on a CPU). The loss
is the model's own. Each update runs at the rate that the segment's schedule gives for the number of finished steps;
nothing else about the schedule is state, so a resumed segment goes on exactly.
"""

from __future__ import annotations

import ctypes
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from everlearn.errors import RunError
from everlearn.seeds import derive
from everlearn.training.precision import autocast_format
from everlearn.updates.config import UpdateTraining
from everlearn.updates.processes import Processes, spread, without_exchange

FLUSH_STEPS = 20
"""Optimizer steps between two writes of the log."""
IGNORED = -100
"""Label of a token without loss, as Transformers has it."""
SHORT_BLOCK = 512
"""Longest block for which plain attention was faster than the fused one on a CPU in bfloat16."""

Row = dict[str, float]


@dataclass(frozen=True)
class Stretch:
    """What a call of `Trainer.train` does.

    Attributes:
        schedule: Factor of the rate at each step, such as a `Schedule`.
        peak: The rate that it multiplies.
        steps: Steps of the whole segment.
        done: Steps finished already.
        read: Ids of the blocks of a step: (blocks of this process, block_tokens).
        first_position: Of the segment in the data, for the stream of dropout.
        checkpoint_every: Steps between calls of `checkpoint`.
        padding: Id that has no loss, where blocks are padded; None: they are not.
    """

    schedule: Callable[[int], float]
    peak: float
    steps: int
    done: int
    read: Callable[[int], Tensor]
    first_position: int
    checkpoint_every: int
    padding: int | None = None


class Trainer:
    """A model and the machine it is trained on.

    Args:
        model: In float32 on the CPU; moved, and with sharding split, in place.
        settings: Of the optimizer's step.
        processes: This process among all.
        seed: Root seed, for dropout.
    """

    def __init__(self, model: PreTrainedModel, settings: UpdateTraining, processes: Processes, seed: int) -> None:
        self.settings = settings
        self.processes = processes
        self._seed = seed
        self._format = autocast_format(settings.precision, processes.device)
        if attention := attention_of(settings, self._format, processes.device):
            model.set_attn_implementation(attention)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if processes.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(processes.device).train()
        self._module = spread(self.model, processes, settings.sharding)

    def optimizer(self, peak: float) -> torch.optim.AdamW:
        """A fresh AdamW; matrices decay, vectors (norms, biases) do not."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = self.processes.device.type in ("cpu", "cuda")
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=peak, betas=self.settings.betas, fused=fused)

    def train(
        self,
        stretch: Stretch,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        log: Callable[[list[Row]], None],
        checkpoint: Callable[[int], None],
    ) -> None:
        """Trains the stretch.

        Args:
            stretch: What to do.
            optimizers: Of parts of the parameters that make up all of them (most often one), with the moments that
                belong to the model's present weights; all run at the stretch's rate.
            log: Receives the rows of finished steps, in every process.
            checkpoint: Called with the number of finished steps, after their rows were logged.

        Raises:
            RunError: the loss is no longer a finite number.
        """
        schedulers = [_scheduler(optimizer, stretch) for optimizer in optimizers]
        losses: list[Tensor] = []
        rates: list[float] = []
        began = time.perf_counter()
        for step, ids in self._batches(stretch):
            rates.append(float(schedulers[0].get_last_lr()[0]))
            self._seed_dropout(stretch.first_position + step)
            losses.append(self._update(ids, optimizers, stretch.padding))
            for scheduler in schedulers:
                scheduler.step()
            finished = step + 1
            saves = finished % stretch.checkpoint_every == 0 and finished < stretch.steps
            if len(losses) == FLUSH_STEPS or saves or finished == stretch.steps:
                seconds = time.perf_counter() - began
                log(self._rows(finished - len(losses), losses, rates, seconds))
                losses, rates, began = [], [], time.perf_counter()
            if saves:
                checkpoint(finished)

    def _update(self, ids: Tensor, optimizers: Sequence[torch.optim.Optimizer], padding: int | None) -> Tensor:
        """One optimizer step; returns the mean loss of this process's blocks."""
        size = self.settings.micro_batch_blocks or len(ids)
        total = torch.zeros((), device=ids.device)
        for at in range(0, len(ids), size):
            part = ids[at : at + size]
            labels = part if padding is None else part.masked_fill(part == padding, IGNORED)
            is_last = at + size >= len(ids)
            exchange: AbstractContextManager[object] = nullcontext() if is_last else without_exchange(self._module)
            with exchange:
                with torch.autocast(ids.device.type, self._format, enabled=self._format is not None):
                    loss = self._module(input_ids=part, labels=labels, use_cache=False).loss
                loss = loss * (len(part) / len(ids))
                loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total

    def _rows(self, first: int, losses: Sequence[Tensor], rates: Sequence[float], seconds: float) -> list[Row]:
        values = self.processes.mean(torch.stack(list(losses))).tolist()
        rows: list[Row] = []
        for at, (loss, rate) in enumerate(zip(values, rates, strict=True)):
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss is {loss} at step {first + at + 1} of the segment: lower schedule.maximal_rate, or "
                    "give a longer schedule.warm_up_steps; the run goes on from its last checkpoint."
                )
            rows.append(
                {"step": first + at, "loss": loss, "learning_rate": rate, "seconds": round(seconds / len(losses), 6)}
            )
        return rows

    def _batches(self, stretch: Stretch) -> Iterator[tuple[int, Tensor]]:
        """Blocks of each step still to do, read one step ahead by a thread."""
        is_gpu = self.processes.device.type == "cuda"

        def read(step: int) -> Tensor:
            ids = stretch.read(step)
            return ids.pin_memory() if is_gpu else ids

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, stretch.done) if stretch.done < stretch.steps else None
            for step in range(stretch.done, stretch.steps):
                assert ahead is not None, "a step is read before it is trained"
                ids = ahead.result()
                ahead = reader.submit(read, step + 1) if step + 1 < stretch.steps else None
                yield step, ids.to(self.processes.device, non_blocking=True)

    def _seed_dropout(self, position: int) -> None:
        torch.manual_seed(derive(self._seed, "dropout", position, self.processes.rank))


def attention_of(settings: UpdateTraining, number_format: torch.dtype | None, device: torch.device) -> str | None:
    """The attention to switch to; None: the model's own choice."""
    if settings.attention != "auto":
        return settings.attention
    is_short = settings.block_tokens <= SHORT_BLOCK
    return "eager" if device.type == "cpu" and number_format is not None and is_short else None


def keep_freed_memory() -> None:
    """Tells the C library (glibc) not to return freed memory to the system after every step."""
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1
    library = ctypes.CDLL(None)
    library.mallopt(trim_threshold, largest)
    library.mallopt(mmap_threshold, 1 << 30)


def _scheduler(optimizer: torch.optim.Optimizer, stretch: Stretch) -> LambdaLR:
    """The schedule at its present step; the rates of an inherited optimizer are overwritten."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = stretch.peak
    return LambdaLR(optimizer, stretch.schedule, last_epoch=stretch.done - 1)
