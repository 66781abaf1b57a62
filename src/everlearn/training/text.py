"""Training on blocks of raw text: the objective `text` for the engine, and the model and machine it runs on.

Blocks have no padding (those of the embedded base have some at the end, without loss); the loss is the model's own,
over every token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from everlearn.devices import autocast_format
from everlearn.errors import RunError
from everlearn.seeds import derive
from everlearn.training.engine import Engine, Pace, Row, is_finite
from everlearn.training.optimizers import make_adamw
from everlearn.training.processes import Processes, spread
from everlearn.training.rows import EncodedRow
from everlearn.training.text_config import TextTrainingConfig

FLUSH_STEPS = 20
"""Optimizer steps between two writes of the log."""
IGNORED = -100
"""Label of a token without loss, as Transformers has it."""
SHORT_BLOCK = 512
"""Longest block for which plain attention was faster than the fused one on a CPU in bfloat16."""
_REMEDY = "set training.gradient_checkpointing to true, shorten training.block_tokens, or take a smaller model"


class Text:
    """Batches of blocks and their loss.

    Args:
        module: Gives the loss of blocks and labels; its gradients are means over processes.
        read: Ids of the blocks of a step: (blocks of this process, block_tokens).
        device: Where the blocks go.
        number_format: Of the computation (autocast); None: that of the weights.
        padding: Id that has no loss, where blocks are padded.
    """

    def __init__(
        self,
        module: nn.Module,
        read: Callable[[int], Tensor],
        device: torch.device,
        number_format: torch.dtype | None,
        padding: int | None,
    ) -> None:
        self._module, self._read, self._device = module, read, device
        self._format, self._padding = number_format, padding

    def read(self, step: int) -> Tensor:
        """This process's blocks of a step."""
        ids = self._read(step)
        return ids.pin_memory() if self._device.type == "cuda" else ids

    def parts(self, batch: Tensor, most_tokens: int) -> Sequence[Tensor]:
        """As many blocks at a time as have so many tokens."""
        return batch.split(max(1, most_tokens // batch.shape[1]))

    def loss(self, part: Tensor, batch: Tensor) -> Tensor:
        """The part's share of the mean over the blocks of this process."""
        ids = part.to(self._device, non_blocking=True)
        labels = ids if self._padding is None else ids.masked_fill(ids == self._padding, IGNORED)
        with torch.autocast(self._device.type, self._format, enabled=self._format is not None):
            loss: Tensor = self._module(input_ids=ids, labels=labels, use_cache=False).loss
        return loss * (len(part) / len(batch))

    def spare(self, batch: Tensor) -> Tensor:
        """One block."""
        return batch[:1]

    def rows(self, batch: Tensor) -> Sequence[EncodedRow]:
        """Blocks are no rows of tasks."""
        return ()

    def tokens(self, batch: Tensor) -> tuple[int, int]:
        """All tokens, and those of one block."""
        return batch.numel(), batch.shape[1]


class TextTraining:
    """A model and the machine it is trained on.

    Args:
        model: In float32 on the CPU; moved, and with sharding split, in place.
        settings: Of the optimizer's step.
        processes: This process among all.
        seed: Root seed, for dropout.
    """

    def __init__(self, model: PreTrainedModel, settings: TextTrainingConfig, processes: Processes, seed: int) -> None:
        self.settings = settings
        self.processes = processes
        self._seed = seed
        self._format = autocast_format(settings.precision, processes.device)
        if attention := attention_of(settings, self._format, processes.device):
            model.set_attn_implementation(attention)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = model.to(processes.device).train()
        self._module = spread(self.model, processes, settings.sharding)

    def optimizer(self, peak: float) -> torch.optim.Optimizer:
        """A fresh AdamW."""
        return make_adamw(self.model, rate=peak, weight_decay=self.settings.weight_decay, betas=self.settings.betas)

    def train(
        self,
        read: Callable[[int], Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        schedule: Callable[[int], float],
        peak: float,
        steps: int,
        done: int = 0,
        first_position: int = 0,
        checkpoint_every: int | None = None,
        padding: int | None = None,
        log: Callable[[list[Row]], None],
        checkpoint: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Trains one segment.

        Args:
            read: Ids of the blocks of a step: (blocks of this process, block_tokens).
            optimizers: Of parts of the parameters that make up all of them (most often one), with the moments that
                belong to the model's present weights; all run at the segment's rate.
            schedule: Factor of the rate at each step, such as a `Schedule`.
            peak: The rate that it multiplies.
            steps: Steps of the whole segment.
            done: Steps finished already.
            first_position: Of the segment in the data, for the stream of dropout.
            checkpoint_every: Steps between calls of `checkpoint`.
            padding: Id that has no loss, where blocks are padded; None: they are not.
            log: Receives the rows of finished steps, in every process; their seconds are each step's own.
            checkpoint: Called with the number of finished steps, after their rows were logged.

        Raises:
            RunError: the loss is no longer a finite number.
        """
        objective = Text(self._module, read, self.processes.device, self._format, padding)
        blocks = self.settings.micro_batch_blocks or self.settings.batch_blocks
        pace = Pace(
            steps=steps,
            peak=peak,
            schedule=schedule,
            max_grad_norm=self.settings.max_grad_norm,
            seed_of=lambda step: derive(self._seed, "dropout", first_position + step, self.processes.rank),
            most_tokens=blocks * self.settings.block_tokens,
            look_every=FLUSH_STEPS,
            checkpoint_every=checkpoint_every,
            done=done,
            remedy=_REMEDY,
        )
        looked = time.perf_counter()

        def look(rows: list[Row]) -> None:
            nonlocal looked
            now = time.perf_counter()
            seconds, looked = (now - looked) / len(rows), now
            for row in rows:
                if not is_finite(row):
                    raise RunError(
                        f"the loss is {row['loss']} at step {row['step'] + 1} of the segment: lower "
                        "schedule.maximal_rate, or give a longer schedule.warm_up_steps; the run goes on from its "
                        "last checkpoint."
                    )
            log([{**row, "seconds": round(seconds, 6)} for row in rows])

        Engine(self.model, objective, optimizers, pace, self.processes, module=self._module).run(look, checkpoint)


def attention_of(settings: TextTrainingConfig, number_format: torch.dtype | None, device: torch.device) -> str | None:
    """The attention to switch to; None: the model's own choice."""
    if settings.attention != "auto":
        return settings.attention
    is_short = settings.block_tokens <= SHORT_BLOCK
    return "eager" if device.type == "cpu" and number_format is not None and is_short else None
