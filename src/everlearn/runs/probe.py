"""A trial of about a minute, from which a plan takes its seconds, its memory, and how much a model writes by itself.

The model is loaded once, as for training; then it reads some of the general text, writes some of what the run is to
write, and trains a few steps of every stage, all at the run's own sizes where the minute allows (else fewer rows at a
time, from which the rest is reckoned). Each kind of work is done twice, once short and once long: the difference tells
what a token takes, the rest what it takes to begin. What an unlearned model answers tells how long its answers are;
learned tasks are taken to be answered at their length. Nothing that is made here is kept.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn import usage
from everlearn.data.mixture import OWN
from everlearn.data.word_prompts import places_in
from everlearn.devices import free_bytes
from everlearn.generation.engines import at_work
from everlearn.models.loading import sizes_of
from everlearn.progress import LineProgress, Progress
from everlearn.runs.measure import measured_text
from everlearn.runs.plan import HEADS, TRAINING, TRIED, Part, Plan

if TYPE_CHECKING:
    from everlearn.data.instance import Instance
    from everlearn.generation.protocol import Generator
    from everlearn.generation.writing import Writing
    from everlearn.models.loading import LoadedModel
    from everlearn.runs.prepare import Prepared
    from everlearn.training.phase import HeadTraining

BUDGET_S = {"reading": 5.0, "writing": 25.0, "training": 30.0}
"""Seconds of the trial, shared out evenly over what is to be tried; a single step that takes longer is waited for."""
_COMPLETIONS = 128
_FEW = 4
_GROWTH = 8
_SHORT, _LONG = 2, (4, TRIED)
"""Optimizer steps of the short trial, and at least and at most of the long one."""
_HEAD_STEPS = 50
"""Of the long trial of heads, each of which takes about a thousandth of a second."""


@dataclass(frozen=True)
class Memory:
    """Bytes that are taken at most, of the GPU or of the whole process, and that were free before."""

    training: int
    generation: int
    free: int

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return {"training": self.training, "generation": self.generation, "free": self.free}


@dataclass(frozen=True)
class Trial:
    """What is true of all plans: memory, and the share of the time in which other work had the processor (or None)."""

    memory: Memory
    waited: float | None


@dataclass(frozen=True)
class _Rate:
    """Seconds to begin a prompt, and of each token that is written; tokens that one completion has."""

    prompt_s: float
    token_s: float
    tokens: float


def probed(plans: Sequence[Plan], prepared: Prepared, progress: Progress) -> tuple[list[Plan], Trial]:
    """Plans of runs with one model, with what the trial tells.

    Args:
        plans: Of runs that differ in method or seed.
        prepared: Of one of them.
        progress: Where to show what goes on.

    Raises:
        UserError: memory does not suffice for what the run does.
    """
    began, waited = time.perf_counter(), usage.waited_s()
    probe = _Probe(prepared)
    with at_work(prepared.engine, progress), progress.step("trying out what the run does", len(BUDGET_S)) as tick:
        probe.read()
        tick(1)
        probe.write([writing for plan in plans for part in plan.parts for writing in part.writings])
        tick(2)
        if prepared.engine is not None:
            prepared.engine.rest()  # as before any training
        probe.train([part for plan in plans for part in plan.parts if part.kind == TRAINING])
        probe.heads([part for plan in plans for part in plan.parts if part.kind == HEADS])
        tick(3)
    told = [replace(plan, parts=[probe.told(part) for part in plan.parts]) for plan in plans]
    share = None if waited is None else ((usage.waited_s() or waited) - waited) / (time.perf_counter() - began)
    return told, Trial(probe.memory, share)


class _Probe:
    def __init__(self, prepared: Prepared) -> None:
        from everlearn.models.loading import load_model
        from everlearn.runs.models_at_hand import ModelsAtHand

        self.prepared, self.context = prepared, prepared.facts.context_length
        model = prepared.recipe.model
        device_free, began = _free(model.device), time.perf_counter()
        self.loaded: LoadedModel = load_model(model, trainable=True)
        self.load_s = time.perf_counter() - began
        self.generator: Generator = ModelsAtHand(model, prepared.engine).generator_for(self.loaded)
        self.memory = Memory(0, 0, device_free)
        self._read_s = 0.0
        self._rates: dict[str, _Rate] = {}
        self._trained: dict[tuple[object, ...], tuple[float, float]] = {}
        self._head_step_s = 0.0

    def told(self, part: Part) -> Part:
        """A part with its seconds, and with what is expected to be written."""
        seconds, written = part.read_tokens * self._read_s, 0
        for writing in part.writings:
            rate = self._rates[writing.what]
            expected = writing.expected_tokens(self.context)
            if expected is None:
                expected = min(round(rate.tokens * writing.completions), writing.most_tokens(self.context))
            seconds += writing.count * rate.prompt_s + max(0, expected - writing.completions) * rate.token_s
            written += expected
        if part.kind == TRAINING:
            begin_s, token_s = self._trained[_like(part)]
            seconds += self.load_s + begin_s + token_s * part.trained_tokens
        if part.kind == HEADS:
            seconds += self._head_step_s * part.steps
        return replace(part, seconds=seconds, written=written)

    def read(self) -> None:
        """How long general text takes to be read."""
        from everlearn.evaluation.general import perplexity, tokens_read

        texts = measured_text(self.prepared.recipe) or [row.output for row in self.prepared.stream.tasks[0].train]
        share, taken, some = BUDGET_S["reading"], 0.0, 1
        perplexity(self.loaded, texts[:1], samples=100)  # the first pass takes longer
        while True:
            began = time.perf_counter()
            perplexity(self.loaded, texts[:some], samples=100)
            took = time.perf_counter() - began
            taken += took
            self._read_s = took / tokens_read(texts[:some], self.loaded.tokenizer, self.context)
            if some == len(texts) or taken + took * _GROWTH > share:
                return
            some = min(len(texts), some * _GROWTH)

    def write(self, writings: Sequence[Writing]) -> None:
        """How long each kind of writing takes, and how much comes."""
        kinds: dict[str, Writing] = {}
        for writing in sorted(writings, key=lambda one: one.tokens is not None):  # what is not known tells more
            kinds.setdefault(writing.what, writing)
        usage.restart_peak()
        for writing in kinds.values():
            self._rates[writing.what] = self._rate(writing, BUDGET_S["writing"] / len(kinds))
        self.memory = replace(self.memory, generation=usage.peak_bytes())

    def _rate(self, writing: Writing, share_s: float) -> _Rate:
        """Of one kind, in about so many seconds."""
        copies, most = (
            writing.sampling.samples_per_prompt,
            math.ceil(writing.most_tokens(self.context) / writing.count),
        )
        if writing.tokens is not None:
            most = min(most, math.ceil(2 * writing.tokens) + _FEW)

        def ask(prompts: int, limit: int) -> tuple[float, int, int]:
            asked = [
                writing.prompts[at * len(writing.prompts) // prompts % len(writing.prompts)] for at in range(prompts)
            ]
            sampling = replace(writing.sampling, max_new_tokens=limit, blend=None)
            began = time.perf_counter()
            found = self.generator.generate(asked, sampling)
            took = time.perf_counter() - began
            flat = [one for completions in found for one in completions]
            return took, sum(len(one.token_ids) for one in flat), sum(one.finish_reason != "length" for one in flat)

        number = min(_FEW, writing.count)
        spent, _, _ = ask(number, 1)
        number = max(number, min(writing.count, _COMPLETIONS // copies, int(number * share_s / 4 / spent)))
        first_s, first, ended = ask(number, 1)
        last_s, last, limit, next_s = first_s, first, 1, 2 * first_s
        while ended < number * copies and limit < most and spent + next_s < share_s:
            limit = min(most, limit * _GROWTH)
            last_s, last, ended = ask(number, limit)
            spent += last_s
            next_s = first_s + _GROWTH * max(0.0, last_s - first_s)
        token_s = max(0.0, last_s - first_s) / (last - first) if last > first else 0.0
        all_written = ended == number * copies or limit == most
        return _Rate(first_s / number, token_s, last / (number * copies if all_written else max(ended, 1)))

    def train(self, parts: Sequence[Part]) -> None:
        """How long a token of each stage's rows takes to be trained; stages for which no time is left are as those."""
        kinds = {_like(part): part for part in sorted(parts, key=lambda part: -part.trained_tokens)}
        if not kinds:
            return
        usage.restart_peak()
        ends, waiting = time.perf_counter() + BUDGET_S["training"], len(kinds)
        row_s = 0.0
        for kind, part in kinds.items():
            left, batch = ends - time.perf_counter(), len(part.batches[0])
            if row_s and left < row_s * batch * (_SHORT + _LONG[0]):
                break
            if not row_s:
                self._steps(part.batches[0][:1], 1, 1)  # the first step takes longer
                row_s, _ = self._steps(part.batches[0][:1], 1, 1)
            self._trained[kind], row_s = self._trial(part, left / waiting, left, row_s)
            waiting -= 1
        means = [sum(values) / len(values) for values in zip(*self._trained.values(), strict=True)]
        self._trained |= {kind: (means[0], means[1]) for kind in kinds if kind not in self._trained}
        self.memory = replace(self.memory, training=usage.peak_bytes())

    def heads(self, parts: Sequence[Part]) -> None:
        """How long a step of heads on kept states takes, with the most classes of all stages."""
        parts = [part for part in parts if part.heads]
        if parts:
            part = max(parts, key=lambda part: len(part.heads.tasks) if part.heads else 0)
            rows, at_once = [row for batch in part.batches for row in batch], len(part.batches[0])
            short_s, _ = self._steps(rows, at_once, _SHORT, part.heads)
            long_s, _ = self._steps(rows, at_once, _HEAD_STEPS, part.heads)
            self._head_step_s = max(0.0, long_s - short_s) / (_HEAD_STEPS - _SHORT)

    def _trial(self, part: Part, share_s: float, left_s: float, row_s: float) -> tuple[tuple[float, float], float]:
        """Seconds to begin, and of a token; and about those of a row.

        Args:
            part: To be tried.
            share_s: About how long the trial may take, where all of a step's rows fit into what is left.
            left_s: What is left for this and others.
            row_s: About what a row takes.
        """
        rows = [row for batch in part.batches for row in batch]
        at_once = max(1, min(len(rows) // len(part.batches), int(left_s / row_s / (_SHORT + _LONG[0]))))
        first_s, first = self._steps(rows, at_once, _SHORT)
        steps = max(_LONG[0], min(_LONG[1], int(_SHORT * (share_s - first_s) / first_s)))
        last_s, last = self._steps(rows, at_once, steps)
        token_s = max(last_s - first_s, 0.0) / (last - first)
        return (max(0.0, first_s - token_s * first), token_s), last_s / (at_once * steps)

    def _steps(
        self, rows: Sequence[Instance], at_once: int, steps: int, heads: HeadTraining | None = None
    ) -> tuple[float, int]:
        """Seconds and tokens of some steps, of a model or of heads on states."""
        import numpy as np

        from everlearn.training.phase import Phase
        from everlearn.training.stage import train_stage

        epochs = math.ceil(steps / math.ceil(len(rows) / at_once))
        changes: dict[str, Any] = {
            "batch_size": at_once,
            "epochs": float(epochs),
            "checkpoint_every": None,
            "report_to": [],
        }
        states = None
        if heads is not None:
            tokenizer, most = self.loaded.tokenizer, self.prepared.recipe.training.max_prompt_tokens
            places = places_in(rows, self.prepared.template, tokenizer, most)
            count = len(rows) if places is None else sum(map(len, places))
            states = {OWN: np.zeros((count, sizes_of(self.prepared.recipe.model).width), dtype=np.float32)}
        with tempfile.TemporaryDirectory(prefix="everlearn-") as place:
            began = time.perf_counter()
            summary = train_stage(
                self.loaded,
                rows,
                self.prepared.recipe.training.model_copy(update={**changes, "sharding": "none"}),
                self.prepared.template,
                seed=0,
                folder=Path(place),
                progress=LineProgress(),
                what="trial",
                phase=Phase(steps=(0, steps), heads=heads),
                states=states,
            )
            took = time.perf_counter() - began
        return took, int(str(summary["tokens"]))


def _like(part: Part) -> tuple[object, ...]:
    """What trainings that take alike have in common."""
    return part.stage, part.steps, part.trained_tokens


def _free(name: str) -> int:
    from everlearn.devices import choose_device

    return free_bytes(choose_device(name))
