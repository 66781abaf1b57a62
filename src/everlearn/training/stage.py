"""Training a stage on rows of prompt and answer: what the engine is given, and what is kept of it.

As published (arXiv 2403.01244, spec section 5), the loss of a batch is the mean over all its answer tokens, and the
optimizer and its schedule start afresh each stage. Torch's global generators, the model's mode and its settings are as
before when training ends.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from everlearn.data.mixture import OWN, Mixture
from everlearn.devices import autocast_format
from everlearn.errors import UserError
from everlearn.files import write_json, write_jsonl
from everlearn.fingerprints import fingerprint_of
from everlearn.models.adapters import inner_model
from everlearn.models.batching import ran_out_of_memory
from everlearn.models.heads import save_heads
from everlearn.models.state import MOMENTS, Tuning
from everlearn.recipe import NOT_OF_A_STEP
from everlearn.seeds import derive
from everlearn.shares import share_of
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.answers import Answers
from everlearn.training.checkpoint import (
    FORM,
    delete_partials,
    has_partials,
    keep_one_partial,
    load_influences,
    load_moments,
    load_tensors,
    moments_of,
    moving_tensors,
    newest_partial,
    partial_folder,
    save_left,
    save_moments,
    save_state,
)
from everlearn.training.classes import (
    ClassLoss,
    ClassRows,
    Headed,
    StatesLoss,
    encode_classes,
    make_head_optimizer,
    put_heads,
)
from everlearn.training.engine import Engine, Pace, Row, is_finite, whole_loss
from everlearn.training.influence import Influence, Training
from everlearn.training.loss_scale import LossScale
from everlearn.training.memory import computed_in, recomputes, remember, tokens_at_once
from everlearn.training.optimizers import make_adamw
from everlearn.training.phase import Phase
from everlearn.training.processes import Processes, here
from everlearn.training.rows import EncodedRow, encode_rows, hash_of
from everlearn.training.schedules import Schedule
from everlearn.training.sharding import Lockstep, take_apart
from everlearn.training.stopwatch import Stopwatch
from everlearn.training.trackers import tracking

if TYPE_CHECKING:
    import numpy as np

    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress
    from everlearn.recipe import TrainingConfig

_REMEDY = (
    "set training.gradient_checkpointing to true, lower training.max_prompt_tokens, set model.tuning to lora, or take "
    "a smaller model (a run with changed keys needs another --name)"
)
_STANDING = ("step", "loss", "learning_rate", "seconds", "term", "penalty")
"""What a row of the history has without any note."""
_UNBOUNDED = 1 << 62
"""Tokens at once where none are computed."""
_LOOK_EVERY = {"cpu": 1}
"""Steps between looks at the loss (each waits for the device), by kind of device; others: 10."""


def train_stage(
    loaded: LoadedModel,
    rows: Sequence[Instance],
    config: TrainingConfig,
    template: PromptTemplate,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    what: str,
    mixture: Mixture | None = None,
    influences: Sequence[Influence] = (),
    phase: Phase | None = None,
    tuning: Tuning | None = None,
    states: Mapping[str, np.ndarray] | None = None,
) -> dict[str, object]:
    """Trains the model in place on the rows, in one phase.

    Args:
        loaded: Loaded with `trainable=True`.
        rows: The stage's own rows.
        config: How to train; of what nobody has decided (`runs/formats.py`), `precision: auto` is what the device is
            built for, `gradient_checkpointing: auto` off.
        template: Makes prompts and answers of the rows.
        seed: Of all random streams of this stage.
        folder: Receives `history.jsonl` and `summary.json`, and checkpoints while training goes on. Training
            continues from a checkpoint that it finds there.
        progress: Where to show what goes on.
        what: Name of the step, for the display and for trackers.
        mixture: What is rehearsed.
        influences: What methods add.
        phase: Which steps at which rate, and whose moments; None: all steps as `config` has it.
        tuning: What the phase starts from and which parts move.
        states: Of a phase that trains nothing but heads: the states of the prompts by group; `loaded` needs no model.

    Returns:
        The summary: steps, rows, tokens, seconds and more.

    Raises:
        DataError: rows that cannot be trained on.
        ModelError: the heads to go on from are of another model or of other classes.
        UserError: the loss is no longer a number, a tracker is missing, or each of several processes walks by itself.
    """
    mixture, phase = mixture or Mixture(), phase or Phase()
    headed, whole = None, loaded
    if phase.heads:
        headed = put_heads(loaded, phase.heads, tuning.start.heads if tuning else None, states)
        loaded = replace(loaded, model=headed)
    wordings: dict[str, dict[int, EncodedRow]] = {}  # a method may give the stage's own rows once more

    def encoded(
        instances: Sequence[Instance], group: str = OWN, worded: PromptTemplate = template
    ) -> list[EncodedRow]:
        known = wordings.setdefault(worded.name, {})
        new = [row for row in instances if id(row) not in known]
        if new or not instances:
            if phase.heads:
                most, has_states = config.max_prompt_tokens, states is not None
                made = encode_classes(new, phase.heads, worded, loaded.tokenizer, most, has_states=has_states)
            else:
                made = encode_rows(new, worded, loaded.tokenizer, config, loaded.context_length)
            known.update((id(row), one) for row, one in zip(new, made, strict=True))
        found = [known[id(row)] for row in instances]
        return [  # as they are where they can be: a row more held for each is felt with a hundred thousand of them
            one if (one.group, one.number) == (group, at) else replace(one, group=group, number=at)
            for at, one in enumerate(found)
        ]

    shuffled, apart = encoded(rows), []
    for group in mixture.groups:
        of_group = encoded(group.rows, group.name, group.template or template) if group.rows else []
        if group.is_shuffled:
            shuffled += of_group
        else:
            apart.append(of_group)
    everything = [*shuffled, *(row for of_group in apart for row in of_group)]
    processes = here(loaded.device) if states is None else Processes(loaded.device)  # heads alone are no work for more
    if config.sharding == "fsdp":
        processes = replace(processes, shares_weights=True)
        take_apart(loaded.model, processes)
    autocast = None if states else autocast_format(config.precision, loaded.device)
    pad_id = loaded.tokenizer.pad_token_id
    loss: AnswerLoss | StatesLoss
    if headed is None:
        lockstep = Lockstep(processes) if processes.shares_weights else None
        loss = AnswerLoss(loaded.model, pad_id=pad_id, autocast=autocast, lockstep=lockstep)
    elif states is None:
        loss = ClassLoss(headed, inner_model(whole.model), pad_id=pad_id, autocast=autocast)
    else:
        loss = StatesLoss(headed, states, everything)
    watch = Stopwatch(loaded.device)
    objective = (Answers if phase.heads is None else partial(ClassRows, phase.heads))(
        loss,
        shuffled,
        apart,
        mixture,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=seed,
        processes=processes,
        influences=influences,
        watch=watch,
        steps=phase.steps,
    )
    row_count = sum(map(len, wordings.values()))
    wordings.clear()
    key = fingerprint_of(
        loaded.fingerprint,
        seed,
        hash_of(everything),
        config.hashed(exclude=NOT_OF_A_STEP),
        mixture.describe(),
        [[type(influence).__name__, dict(influence.inputs())] for influence in influences],
        *([described] if tuning and (described := phase.describe(tuning)) else []),
    )
    with (
        state_kept(whole, recompute=recomputes(config)) if states is None else nullcontext(),
        loss.packed_where_equal(everything) as is_packed,
        progress.step(what, len(objective)) as tick,
        tracking(config.report_to if processes.is_first else (), folder, what) as track,
    ):
        course = _Course(
            loaded, objective, config, key, seed=seed, folder=folder, tick=tick, track=track, say=progress.say
        )
        course.run(everything, processes, influences, phase, tuning, watch)
    last = course.history[-1]
    summary: dict[str, object] = {
        "steps": len(objective),
        "rows": row_count,
        "tokens": course.tokens,
        "answer_tokens": course.answers,
        "seconds": last["seconds"],
        "tokens_per_second": course.tokens / max(last["seconds"], 1e-9),
        "final_loss": last["loss"],
        "packed": is_packed,
        "micro_batch_tokens": course.most_tokens,
        "precision": str(autocast or next(loaded.model.parameters()).dtype).removeprefix("torch."),
    }
    if seconds := watch.seconds():
        summary["influence_seconds"] = seconds
    if notes := means_of_notes(course.history):
        summary["notes"] = notes
    if processes.is_first:
        if headed is not None:
            save_heads(headed.heads, folder)
        write_jsonl(folder / "history.jsonl", course.history)
        write_json(folder / "summary.json", summary)
        delete_partials(folder)
    return summary


def means_of_notes(history: Sequence[Row]) -> dict[str, float]:
    """What influences have noted, by name: the mean over the steps that have it."""
    names = dict.fromkeys(name for row in history for name in row if name not in _STANDING)
    found = {name: [row[name] for row in history if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


class _Course:
    """One stage's training as it goes: its history, counts and checkpoints."""

    def __init__(
        self,
        loaded: LoadedModel,
        objective: Answers,
        config: TrainingConfig,
        key: str,
        *,
        seed: int,
        folder: Path,
        tick: Callable[..., None],
        track: Callable[[Row], None],
        say: Callable[[str], None],
    ) -> None:
        self.loaded, self.objective, self.config, self.key = loaded, objective, config, key
        self.seed, self.folder, self.tick, self.track, self.say = seed, folder, tick, track, say
        self.headed = loaded.model if isinstance(loaded.model, Headed) else None
        self.has_states = self.headed is not None and self.headed.backbone is None
        self.most_tokens = self._most_tokens_before = _UNBOUNDED if self.has_states else tokens_at_once(loaded, config)
        self.scale = LossScale(loaded.device, None if self.has_states else computed_in(loaded, config))
        self.history: list[Row] = []
        self.tokens = self.answers = self.done = 0
        self._seconds_before, self._tokens_before = 0.0, 0

    def run(
        self,
        rows: Sequence[EncodedRow],
        processes: Processes,
        influences: Sequence[Influence],
        phase: Phase,
        tuning: Tuning | None,
        watch: Stopwatch,
    ) -> None:
        """Trains from the last checkpoint, or from the start, to the end."""
        model, config, steps = self.loaded.model, self.config, len(self.objective)
        model.train()

        def gradients_of(some: Sequence[EncodedRow]) -> dict[str, torch.Tensor]:
            lengths = [len(row.ids) for row in some]
            return engine.within_memory(
                lambda most: self.objective.gradients_of(some, most, self.scale.value), sum(lengths), max(lengths)
            )

        moving = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        with self._memory("what the method keeps beside the weights"):
            for influence in influences:
                with watch.of(influence.told_as):
                    influence.begin(
                        Training(model, moving, rows, self.loaded.device, self.seed, steps, gradients_of, self.say)
                    )
        optimizer = self._optimizer(phase, tuning)
        if phase.moments == "inherit":
            start = (tuning.start.heads.folder if tuning.start.heads else tuning.start.folder) if tuning else None
            assert start is not None, "moments are inherited from a phase"
            assert (start / MOMENTS).exists(), "moments are inherited from a phase that has kept them"
            load_moments(start, model, [optimizer], grows=self.headed is not None)
        with processes.first_goes_first():  # it deletes what cannot be used
            self._go_on(optimizer, influences, watch)
        look_every = 10 if self.has_states else _LOOK_EVERY.get(self.loaded.device.type, 10)
        pace = Pace(
            steps=steps,
            peak=config.learning_rate,
            schedule=phase.schedule or schedule_of(config, steps),
            max_grad_norm=config.max_grad_norm,
            seed_of=lambda step: derive(
                self.seed, "step", self.objective.first + step, *([processes.rank] if processes.rank else [])
            ),
            most_tokens=self.most_tokens,
            look_every=look_every,
            checkpoint_every=config.checkpoint_every,
            done=self.done,
            remedy=_REMEDY,
            reads_ahead=not self.has_states,
        )
        acting: dict[str, Any] = {"influences": influences, "watch": watch, "scale": self.scale}
        engine = Engine(model, self.objective, [optimizer], pace, processes, **acting)

        def save(finished: int) -> None:
            self.most_tokens = engine.most_tokens
            record = {"key": self.key, "form": FORM, **self._standing(finished), "influence_seconds": watch.seconds()}
            record |= {"loss_scale": scale} if (scale := self.scale.state()) else {}
            target = partial_folder(self.folder, finished)
            moments = moments_of(model, [optimizer])
            save_state(target, moving_tensors(model), record, processes, moments=moments, influences=influences)
            if processes.is_first:
                keep_one_partial(self.folder, finished)

        self._began = time.perf_counter()
        with self._memory("the optimizer"):
            engine.run(self._look, save)
        self.most_tokens = engine.most_tokens
        if self.most_tokens < self._most_tokens_before:
            remember(self.loaded, config, self.most_tokens)
        save_left(self.folder, influences, processes)
        if phase.keeps_moments:
            save_moments(self.folder / MOMENTS, model, [optimizer], processes)

    def _optimizer(self, phase: Phase, tuning: Tuning | None) -> torch.optim.Optimizer:
        rate, decay = self.config.learning_rate, self.config.weight_decay
        kind = self.config.optimizer
        if self.headed is None or phase.heads is None:
            parts = tuning.moves if tuning else None
            return make_adamw(self.loaded.model, rate=rate, weight_decay=decay, parts=parts, optimizer=kind)
        return make_head_optimizer(*self.headed.named_groups(), phase.heads, rate=rate, decay=decay, optimizer=kind)

    @contextmanager
    def _memory(self, what: str) -> Iterator[None]:
        """Says where memory ran out, if it does outside of the passes over rows."""
        try:
            yield
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            where = f"on {self.loaded.device} in {what}"
            raise UserError(f"training ran out of memory {where}: {_REMEDY}.") from None

    def _go_on(self, optimizer: torch.optim.Optimizer, influences: Sequence[Influence], watch: Stopwatch) -> None:
        """Takes the newest checkpoint back, if there is one."""
        had_any = has_partials(self.folder)
        found = newest_partial(self.folder, self.key, FORM)
        if found is None:
            if had_any:
                self.say(
                    "the checkpoint within this stage is damaged, of other rows or settings, or of an earlier "
                    "everlearn: the stage is trained again from its start."
                )
            return
        path, record = found
        load_tensors(path / "model.safetensors", moving_tensors(self.loaded.model))
        load_moments(path, self.loaded.model, [optimizer], grows=self.headed is not None)
        load_influences(path, influences)
        self.scale.load_state(record.get("loss_scale", {}))
        self.done, self.history = record["step"], record["history"]
        self.most_tokens = min(self.most_tokens, record["most_tokens"])
        self.tokens, self.answers = record["tokens"], record["answers"]
        watch.add(record.get("influence_seconds", {}))
        self._seconds_before, self._tokens_before = self.history[-1]["seconds"], self.tokens
        self.tick(self.done, len(self.objective), resumed=True)

    def _standing(self, finished: int) -> dict[str, Any]:
        return {
            "step": finished,
            "history": self.history,
            "most_tokens": self.most_tokens,
            "tokens": self.tokens,
            "answers": self.answers,
        }

    def _look(self, rows: list[Row]) -> None:
        """Adds finished steps to the history, shows and tracks them.

        Raises:
            UserError: a loss is no number.
        """
        steps = len(self.objective)
        for row in rows:
            batch = self.objective.rows_of(int(row["step"]))
            if self.headed is None:
                self.tokens += sum(len(one.ids) for one in batch)
                self.answers += sum(one.answer_count for one in batch)
            elif not self.has_states:
                self.tokens += sum(one.computed for one in batch)
            row = {**row, "step": int(row["step"]) + 1, "seconds": row["seconds"] + self._seconds_before}
            if not is_finite(row):
                adds = "term" in row or "penalty" in row
                raise UserError(
                    f"the loss became {whole_loss(row)} at step {row['step']} of {steps}: lower "
                    f"training.learning_rate (now {self.config.learning_rate:g})"
                    f"{' or the strength of what the method adds' if adds else ''}, or set training.precision to "
                    "float32."
                )
            self.history.append(row)
            if row["step"] % 10 == 0 or row["step"] == steps:
                self.track(row)
        rate = (self.tokens - self._tokens_before) / max(time.perf_counter() - self._began, 1e-9)
        self.tick(int(self.history[-1]["step"]), steps, f"loss {self.history[-1]['loss']:.3f}, {rate:,.0f} tokens/s")


def schedule_of(config: TrainingConfig, steps: int) -> Schedule:
    """The schedule of a stage as plain data: after the warm-up a cosine or a straight line to 0, or constant."""
    warm_up = math.ceil(share_of(config.warmup_ratio, steps))
    if config.scheduler == "constant":
        return Schedule("constant", warm_up=warm_up)
    name = "knee" if config.scheduler == "linear" else config.scheduler
    return Schedule(name, length=steps, warm_up=warm_up, floor=0.0)


@contextmanager
def state_kept(loaded: LoadedModel, *, recompute: bool) -> Iterator[None]:
    """Puts back what training sets: torch's global generators, the model's mode and settings."""
    inner = inner_model(loaded.model, sees_prompt=True)
    drawn_from = [inner.device] if inner.device.type == "cuda" else []  # left out: every GPU of the machine
    try:
        with torch.random.fork_rng(drawn_from):
            if recompute:
                _recompute(inner.gradient_checkpointing_enable, {"use_reentrant": False})
            yield
    finally:
        if recompute:
            _recompute(inner.gradient_checkpointing_disable)
        loaded.model.zero_grad(set_to_none=True)
        loaded.model.eval()


def _recompute(switch: Callable[..., None], *settings: object) -> None:
    """Switches recomputation by the name that all Transformers 5 releases have, of which some warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        switch(*settings)
