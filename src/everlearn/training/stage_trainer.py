"""Training one stage: Transformers' Trainer around a step that computes no padding and no unused logits.

The Trainer gives the optimizer, Accelerate, callbacks and trackers (`report_to`). What differs from its defaults:
the step (`training_step`: micro-batches of `answer_loss.py`, the method's hooks, one backward pass each), the order
of rows (`batch_order.py`), and checkpoints within the stage (`partial.py`, no pickle). Its dataset is
the optimizer steps still to do, so resuming is training on fewer. As published (arXiv 2403.01244, spec section
5), the loss of a batch is the mean over all its answer tokens, rows have no weights, the optimizer and its schedule
start afresh each stage.

When memory runs out in a step, it is computed again in parts of half as many tokens, and so are those after it.

Every step seeds its own random stream (dropout) from the stage's seed and its number. Torch's, numpy's and Python's
global generators, the model's attention and its settings are as before when training ends.

On the embedded base (2.2 million weights, 16 short rows a step) the Trainer's own share of a step was under 3 ms of
about 40, so no loop of our own is worth having.

One process: with several, gradients would have to be averaged around this step; that is refused.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler

from everlearn.data.instance import fingerprint_of
from everlearn.errors import UserError
from everlearn.files import write_json, write_jsonl
from everlearn.models.batching import ran_out_of_memory, release_device_memory
from everlearn.recipe import NOT_OF_A_STEP
from everlearn.seeds import derive
from everlearn.shares import share_of
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.batch_order import Batches
from everlearn.training.hooks import PaddedBatch, TrainingHooks
from everlearn.training.kept_state import seed_device, state_kept
from everlearn.training.packing import Packing
from everlearn.training.partial import Partial, delete_partials, load_partial, save_partial
from everlearn.training.precision import autocast_format
from everlearn.training.rows import EncodedRow, encode_rows
from everlearn.training.trackers import check_trackers

if TYPE_CHECKING:
    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress, Tick
    from everlearn.recipe import TrainingConfig

MOST_TOKENS = {"cpu": 2048}
"""Tokens computed at once, by kind of device (more is no faster on a CPU); others: 32,768."""
_REMEDY = (
    "set training.gradient_checkpointing to true, lower training.max_prompt_tokens, set model.tuning to lora, or take "
    "a smaller model (a run with changed keys needs another --name)"
)
_LOOK_EVERY = {"cpu": 1}
"""Steps between looks at the loss (each waits for the device), by kind of device; others: 10."""


def train_stage(
    loaded: LoadedModel,
    rows: Sequence[Instance],
    config: TrainingConfig,
    template: PromptTemplate,
    *,
    seed: int,
    hooks: TrainingHooks | None,
    folder: Path,
    progress: Progress,
    what: str,
) -> dict[str, object]:
    """Trains the model in place on the rows.

    Args:
        loaded: Loaded with `trainable=True`.
        rows: The stage's own rows and the rehearsed ones, together.
        config: How to train.
        template: Makes prompts and answers of the rows.
        seed: Of all random streams of this stage.
        hooks: The method's terms; None for plain cross-entropy.
        folder: Receives `history.jsonl` and `summary.json`, and checkpoints while training goes on. Training
            continues from a checkpoint that it finds there.
        progress: Where to show what goes on.
        what: Name of the step, for the display and for trackers.

    Returns:
        The summary: steps, rows, tokens, seconds and more.

    Raises:
        DataError: rows that cannot be trained on.
        UserError: the loss is no longer a number, a tracker is missing, or several processes were started.
    """
    check_trackers(config.report_to)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("training runs in one process: start everlearn without torchrun or accelerate launch.")
    encoded = encode_rows(rows, template, loaded.tokenizer, config, loaded.context_length)
    steps = Batches(encoded, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
    key = fingerprint_of(
        loaded.fingerprint,
        seed,
        [[row.ids, row.prompt_length] for row in encoded],
        config.model_dump(mode="json", exclude=set(NOT_OF_A_STEP)),
    )
    autocast = autocast_format(config.precision, loaded.device)
    loss = AnswerLoss(loaded.model, pad_id=loaded.tokenizer.pad_token_id, autocast=autocast)
    with (
        state_kept(loaded, recompute=config.gradient_checkpointing),
        loss.packed_where_equal(encoded) as is_packed,
        progress.step(what, len(steps)) as tick,
    ):
        trainer = StageTrainer(loaded, loss, steps, config, seed=seed, hooks=hooks, folder=folder, what=what)
        history = trainer.run(key, tick)
    tokens = sum(len(row.ids) for step in steps for row in step)
    seconds = history[-1]["seconds"]
    summary: dict[str, object] = {
        "steps": len(steps),
        "rows": len(rows),
        "tokens": tokens,
        "answer_tokens": sum(row.answer_count for step in steps for row in step),
        "seconds": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9),
        "final_loss": history[-1]["loss"],
        "packed": is_packed,
        "micro_batch_tokens": trainer.most_tokens,
        "precision": str(autocast or next(loaded.model.parameters()).dtype).removeprefix("torch."),
    }
    write_jsonl(folder / "history.jsonl", history)
    write_json(folder / "summary.json", summary)
    delete_partials(folder)
    return summary


class StageTrainer(Trainer):
    """The Trainer of one stage; its batches are the steps' rows.

    Args:
        loaded: The model.
        loss: Computes micro-batches.
        steps: The rows of each optimizer step.
        config: How to train.
        seed: Of the stage.
        hooks: The method's terms.
        folder: For checkpoints and trackers.
        what: Name of the run for trackers.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        loss: AnswerLoss,
        steps: Batches[EncodedRow],
        config: TrainingConfig,
        *,
        seed: int,
        hooks: TrainingHooks | None,
        folder: Path,
        what: str,
    ) -> None:
        arguments = TrainingArguments(
            output_dir=str(folder),
            run_name=what,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=list(config.report_to) or "none",
            disable_tqdm=True,
            use_cpu=loaded.device.type == "cpu",
            seed=derive(seed, "trainer"),
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs would be used through DataParallel
        super().__init__(loaded.model, arguments)
        self.remove_callback(PrinterCallback)
        self.answer_loss, self.steps, self.config, self.hooks = loss, steps, config, hooks
        self.stage_seed, self.folder = seed, folder
        self.most_tokens = config.micro_batch_tokens or MOST_TOKENS.get(loaded.device.type, 32768)
        self.history: list[dict[str, float]] = []
        self._unread: list[tuple[torch.Tensor, torch.Tensor | None, float, float]] = []

    def run(self, key: str, tick: Tick) -> list[dict[str, float]]:
        """Trains from the last checkpoint, or from the start, to the end; returns the history."""
        self.create_optimizer()
        warmup = math.ceil(share_of(self.config.warmup_ratio, len(self.steps)))
        kind = "constant_with_warmup" if self.config.scheduler == "constant" else self.config.scheduler
        self.lr_scheduler = get_scheduler(kind, self.optimizer, warmup, len(self.steps))
        done = load_partial(self.folder, key, self.model, self.optimizer, self.lr_scheduler)
        self.first = done.step if done else 0
        self.history = done.history if done else []
        self.most_tokens = done.most_tokens if done else self.most_tokens
        self.began = time.monotonic() - (done.seconds if done else 0.0)
        self.model.train()
        self.add_callback(_Watch(self, key, tick))
        if self.first < len(self.steps):
            try:
                self.train()
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                raise UserError(
                    f"training ran out of memory on {self.answer_loss.device} in the optimizer: {_REMEDY}."
                ) from None
        return self.history

    def get_train_dataloader(self) -> DataLoader[list[EncodedRow]]:
        """The steps still to do."""
        return DataLoader(self.steps.after(self.first), batch_size=1, collate_fn=lambda items: items[0])

    def training_step(
        self, model: torch.nn.Module, inputs: Any, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward passes of one optimizer step, with half the tokens at once until memory suffices."""
        while True:
            try:
                return self._passes(inputs)
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
            self._halve(inputs)  # outside the handler, which holds what was computed

    def _halve(self, rows: list[EncodedRow]) -> None:
        """Lowers the tokens computed at once, after memory ran out on these rows.

        Raises:
            UserError: a single row was too much.
        """
        longest = max(len(row.ids) for row in rows)
        if self.most_tokens <= longest:
            raise UserError(
                f"training ran out of memory on {self.answer_loss.device} with one row of up to {longest} tokens at a "
                f"time: {_REMEDY}."
            )
        self.most_tokens = max(longest, min(self.most_tokens, sum(len(row.ids) for row in rows)) // 2)
        self.model.zero_grad()
        release_device_memory()

    def _passes(self, inputs: list[EncodedRow]) -> torch.Tensor:
        seed_device(self.answer_loss.device, derive(self.stage_seed, "step", self.state.global_step))
        count = sum(row.answer_count for row in inputs)
        total = torch.zeros((), device=self.answer_loss.device)
        for part in self.answer_loss.micro_batches(inputs, self.most_tokens):
            loss = self._part_loss(part, count)
            loss.backward()
            total += loss.detach()
        penalty = self.hooks.penalty(self.model) if self.hooks else None
        if penalty is not None:
            penalty.backward()
            penalty = penalty.detach()
        rate = self.lr_scheduler.get_last_lr()[0]
        self._unread.append((total, penalty, rate, time.monotonic() - self.began))
        return total

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: it would walk all parameters at each step."""
        return 0

    def read_losses(self) -> None:
        """Moves the losses of the last steps from the device into the history.

        Raises:
            UserError: one of them is no number.
        """
        for loss, penalty, rate, seconds in self._unread:
            row = {"step": len(self.history) + 1, "loss": float(loss), "learning_rate": rate, "seconds": seconds}
            if penalty is not None:
                row["penalty"] = float(penalty)
            if not math.isfinite(row["loss"] + row.get("penalty", 0.0)):
                raise UserError(
                    f"the loss became {row['loss']} at step {row['step']} of {len(self.steps)}: lower "
                    f"training.learning_rate (now {self.config.learning_rate:g})"
                    f"{' or the strength of the penalty' if penalty is not None else ''}, or set training.precision "
                    "to float32."
                )
            self.history.append(row)
        self._unread.clear()

    def _part_loss(self, part: Packing | list[EncodedRow], count: int) -> torch.Tensor:
        """One micro-batch's share of the batch's mean loss."""
        total = self.answer_loss(part)
        if self.hooks is None:
            return total / count
        rows = part.rows if isinstance(part, Packing) else tuple(part)
        own = sum(row.answer_count for row in rows)
        plain = total / own
        with self.answer_loss.number_format():
            hooked = self.hooks.loss(self.model, PaddedBatch(self.answer_loss, rows), plain)
        return total / count if hooked is plain else hooked * (own / count)


class _Watch(TrainerCallback):
    """Progress, history, trackers, checkpoints and the `after_step` hook."""

    def __init__(self, trainer: StageTrainer, key: str, tick: Tick) -> None:
        self.trainer, self.key, self.tick = trainer, key, tick
        self.look_every = _LOOK_EVERY.get(trainer.answer_loss.device.type, 10)
        self.tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        state.global_step, state.max_steps = self.trainer.first, len(self.trainer.steps)
        self.resumed = time.monotonic()
        if self.trainer.first:
            self.tick(self.trainer.first, len(self.trainer.steps), resumed=True)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.trainer.hooks:
            self.trainer.hooks.after_step(self.trainer.model, self.trainer.optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        trainer, done = self.trainer, state.global_step
        is_last = done == len(trainer.steps)
        self.tokens += sum(len(row.ids) for row in trainer.steps[done - 1])
        is_saved = trainer.config.checkpoint_every and done % trainer.config.checkpoint_every == 0 and not is_last
        if done % self.look_every == 0 or is_last or is_saved:
            trainer.read_losses()
            row = trainer.history[-1]
            rate = self.tokens / max(time.monotonic() - self.resumed, 1e-9)
            self.tick(done, len(trainer.steps), f"loss {row['loss']:.3f}, {rate:,.0f} tokens/s")
            if args.report_to and (done % 10 == 0 or is_last):
                trainer.log({name: value for name, value in row.items() if name not in ("step", "seconds")})
        if is_saved:
            partial = Partial(done, trainer.history[-1]["seconds"], trainer.history, trainer.most_tokens)
            save_partial(trainer.folder, self.key, partial, trainer.model, trainer.optimizer, trainer.lr_scheduler)
