"""What a run is going to do, before it does: optimizer steps, tokens that are trained, read and written, the disk.

Nothing is computed with a model here, so that every run begins with its plan; what only a trial tells (seconds,
memory, how much a model writes) is added by `runs/probe.py`. Rows that models have yet to write are stood in for by
real ones of their task, which is what the method's `forecast` gives. Of more than a thousand rows of a kind some are
looked at: then figures are near the truth and not it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from everlearn.data.instance import Instance
from everlearn.data.mixture import OWN as OF_THE_STAGE
from everlearn.data.mixture import Mixture
from everlearn.data.samples import LOOKED_AT, even_rows
from everlearn.data.words import is_of_words
from everlearn.generation.protocol import Sampling
from everlearn.generation.writing import Writing, answering
from everlearn.layout import BASE_STAGE
from everlearn.methods.base import Forecast, Method, Stage, StageContext
from everlearn.methods.stack import parts_of
from everlearn.models import state as models
from everlearn.models.loading import sizes_of
from everlearn.models.state import ModelState
from everlearn.progress import LineProgress
from everlearn.recipe import EMBEDDED
from everlearn.runs.measure import asks_benchmarks, measured_text
from everlearn.seeds import derive

if TYPE_CHECKING:
    from everlearn.data.instance import Task
    from everlearn.data.prompts import PromptTemplate
    from everlearn.runs.prepare import Prepared
    from everlearn.training.phase import HeadTraining, Phase, PolicyTraining
    from everlearn.training.rows import EncodedRow

TRAINING, ANSWERS, GENERAL, OWN = "training", "answers", "general ability", "the method's own steps"
HEADS, PROBES = "heads on kept states", "probes"
POLICY = "training by reward"
TRIED = 12
"""Steps of a stage whose rows a trial gets."""
_STATE_BYTES = 12
"""Of a moving weight in a checkpoint within a stage: itself and two moments in float32."""
_FEATURE_BYTES = 4
_MOST_STEPS = 2_000
"""Steps whose rows are counted one by one; more are as these."""


@dataclass(frozen=True)
class Part:
    """What a stage does of one kind.

    Attributes:
        stage: Folder name.
        kind: Training through the model, or of heads on states that are kept; answers to the tasks, general ability,
            probes, or what the method does beside.
        steps: Optimizer steps.
        trained_tokens: Of the rows of all steps.
        read_tokens: That are read without training.
        writings: What is written.
        batches: Rows of some of the steps, or others like them, for a trial.
        heads: That are trained on kept states; None: nothing is.
        most_written: Tokens that are written at most.
        written: Tokens that are expected to be written; None: not known.
        seconds: That it takes; None: not known.
    """

    stage: str
    kind: str
    steps: int = 0
    trained_tokens: int = 0
    read_tokens: int = 0
    writings: Sequence[Writing] = field(default=(), repr=False)
    batches: Sequence[Sequence[Instance]] = field(default=(), repr=False)
    heads: HeadTraining | None = field(default=None, repr=False)
    most_written: int = 0
    written: int | None = 0
    seconds: float | None = None

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "stage": self.stage,
            "kind": self.kind,
            "steps": self.steps,
            "trained_tokens": self.trained_tokens,
            "read_tokens": self.read_tokens,
            "most_written_tokens": self.most_written,
            "written_tokens": self.written,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        label: Of the run.
        parts: In the order of the run.
        unknown: What else takes time, and how much nobody knows.
        begins_plainly: Whether the first stage is plain training, which runs of other methods share.
    """

    label: str
    parts: Sequence[Part]
    unknown: Sequence[str] = ()
    begins_plainly: bool = False

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {"parts": [part.to_json() for part in self.parts], "unknown": list(self.unknown)}


def plan_run(prepared: Prepared, label: str) -> Plan:
    """The plan of a run.

    Args:
        prepared: What is known and checked before any training; its method is asked and not changed.
        label: What the run is called.

    Raises:
        UserError: the method cannot train a stage as asked.
    """
    return _Planner(prepared).plan(label)


class _Planner:
    """Walks the stages as the run will."""

    def __init__(self, prepared: Prepared) -> None:
        self.recipe, self.method, self.facts = prepared.recipe, prepared.method, prepared.facts
        self.stream, self.template, self.prepared = prepared.stream, prepared.template, prepared
        self.context, self.tokenizer = prepared.facts.context_length, prepared.facts.tokenizer
        self._lengths: dict[str, dict[int, tuple[int, int]]] = {}
        self._answers: dict[tuple[str, bool], Writing] = {}
        self._probes = self.recipe.evaluation.probing.probes if self.stream.scenario else []
        self._model = 0  # how many stages have moved the weights that heads and probes read
        self._measured_models: set[int] = set()
        self._read: set[tuple[int, str, str]] = set()

    def plan(self, label: str) -> Plan:
        """All stages."""
        stages = self.method.stages(self.stream)
        parts = self._measured(BASE_STAGE, (), self.stream.tasks)
        unknown: list[str] = []
        mixtures: list[Mixture] = []
        for stage in stages:
            forecast, trained, has_heads = self._trained(stage)
            parts += trained
            if forecast.writings or forecast.read_tokens:
                own = Part(stage.name, OWN, read_tokens=forecast.read_tokens, writings=forecast.writings)
                parts.append(own)
            seen = (*stage.seen, *stage.tasks)
            asked = self.stream.tasks if self.recipe.evaluation.unseen_tasks else seen
            parts += self._measured(stage.name, seen, asked, has_heads=has_heads)
            mixtures.append(forecast.mixture)
            unknown += forecast.unknown
        unknown += [
            f"{one.name}: its terms in training" for one in parts_of(self.method) if one.overrides("influences")
        ]
        if self._probes:
            unknown.append(f"probing: the fits of {len(self._probes)} probes")
        unknown += self._asked(stages)
        acts = any(
            one.overrides(hook) for one in parts_of(self.method) for hook in ("influences", "phases", "released")
        )
        is_plain = not (acts or mixtures[0].rows or mixtures[0].rewritten or mixtures[0].own)
        return Plan(label, [self._counted(part) for part in parts], list(dict.fromkeys(unknown)), is_plain)

    def _asked(self, stages: Sequence[Stage]) -> list[str]:
        """What the harness and a judge are asked and how often; how long that takes is not tried."""
        from everlearn.evaluation.benchmark_tasks import find_benchmarks

        last = stages[-1].index
        times = sum(asks_benchmarks(self.recipe.evaluation, index, last) for index in range(last + 1))
        found = find_benchmarks(self.recipe.evaluation, self.tokenizer, self.context)
        told = [f"{one.given.task}: {one.questions:,} questions, asked of up to {times} models" for one in found]
        if judge := self.recipe.evaluation.judge:
            pairs = sum(min(len(task.evaluation), judge.limit or len(task.evaluation)) for task in self.stream)
            told.append(f"the judge {judge.model}: up to {2 * pairs:,} questions to its server")
        return told

    def _counted(self, part: Part) -> Part:
        expected = [writing.expected_tokens(self.context) for writing in part.writings]
        known = None if None in expected else sum(one or 0 for one in expected)
        most = sum(writing.most_tokens(self.context) for writing in part.writings)
        return replace(part, most_written=most, written=known)

    def _measured(
        self, name: str, learnt: Sequence[Task], asked: Sequence[Task], *, has_heads: bool = False
    ) -> list[Part]:
        """What a stage measures: tasks that were learnt are answered at the length of their answers."""
        if is_of_words(self.stream):
            asked = [task for task in learnt if has_heads]
        writings: list[Writing] = []
        read, is_new = 0, self._model not in self._measured_models
        self._measured_models.add(self._model)
        if has_heads:
            read = self._states((task, "evaluation") for task in asked)
        elif self.stream.scenario == "task_incremental":
            read = sum(self._chosen(task) for task in asked)
        else:
            writings = [self._answered(task, is_known=task in learnt) for task in asked]
        found = [Part(name, ANSWERS, read_tokens=read, writings=writings)]
        if self.recipe.evaluation.general and is_new:
            found.append(replace(self._general, stage=name))
        if self._probes and is_new:
            of_all = self._states((task, part) for task in self.stream for part in ("train", "evaluation"))
            found.append(Part(name, PROBES, read_tokens=of_all))
        return found

    def _states(self, wanted: Iterable[tuple[Task, str]]) -> int:
        """Tokens of a task's prompts whose states under the model at hand nobody has read yet."""
        new = [(task, part) for task, part in wanted if (self._model, task.name, part) not in self._read]
        self._read |= {(self._model, task.name, part) for task, part in new}
        return sum(self._prompt_tokens(getattr(task, part), part == "train") for task, part in new)

    def _prompt_tokens(self, rows: Sequence[Instance], is_cut: bool) -> int:
        """Of the prompts of rows, about."""
        most = self.recipe.training.max_prompt_tokens if is_cut else None
        some = even_rows(rows, min(len(rows), LOOKED_AT))
        found = sum(len(self.template.prompt_ids(row, self.tokenizer, most)) for row in some)
        return round(found * len(rows) / max(len(some), 1))

    def _chosen(self, task: Task) -> int:
        """Tokens that are read to choose one of its classes for each row of a task, about."""
        rows, classes = task.evaluation, task.classes
        named = [len(self.template.target_ids(replace(rows[0], output=name), self.tokenizer)) for name in classes]
        return self._prompt_tokens(rows, is_cut=False) * len(classes) + sum(named) * len(rows)

    def _answered(self, task: Task, *, is_known: bool) -> Writing:
        if (task.name, is_known) not in self._answers:
            self._answers[task.name, is_known] = answering(
                task.name,
                task.evaluation,
                self.template,
                self.tokenizer,
                most_tokens=self.recipe.evaluation.max_new_tokens,
                is_known=is_known,
            )
        return self._answers[task.name, is_known]

    @cached_property
    def _general(self) -> Part:
        from everlearn.evaluation.general import microtask_answers, tokens_read

        writings = []
        if self.recipe.model.base == EMBEDDED:
            from everlearn.data.embedded.corpus import held_out_microtasks

            writings = [microtask_answers(self.tokenizer, held_out_microtasks())]
        read = tokens_read(measured_text(self.recipe), self.tokenizer, self.context)
        return Part("", GENERAL, read_tokens=read, writings=writings)

    def _trained(self, stage: Stage) -> tuple[Forecast, list[Part], bool]:
        """What a stage trains, and whether heads then answer."""
        from everlearn.training.answers import Walk, order_of

        context = unmade(self.prepared, stage)
        forecast = self.method.forecast(context, self.facts)
        mixture, own = forecast.mixture, stage.rows
        if mixture.rewritten is not None:
            own = tuple(mixture.rewritten)
        shuffled, apart = self._encoded(own, mixture)
        config = self.recipe.training
        how: dict[str, Any] = {"batch_size": config.batch_size, "epochs": config.epochs}
        how["seed"] = derive(self.recipe.seed, f"stage-{stage.index}", TRAINING)
        phases = self.method.phases(replace(context, order=order_of(len(shuffled), mixture, **how)))
        rows_of = {OF_THE_STAGE: own, **{group.name: group.rows for group in mixture.groups}}
        steps = tokens = of_heads = read = 0
        batches: list[list[Instance]] = []
        rewarded: list[Part] = []
        tried_heads: list[list[Instance]] = []
        heads: HeadTraining | None = None

        def tried_of(walk: Walk) -> list[list[Instance]]:
            tried = [walk.rows_of(at * len(walk) // TRIED) for at in range(TRIED)]
            return [[rows_of[row.group][row.number] for row in batch] for batch in tried]

        self._model += any(phase.heads is None or phase.heads.moves_backbone for phase in phases)
        for phase in phases:
            if phase.policy:
                rewarded.append(self._rewarded(stage, phase.policy))
                continue
            changed = {key: phase.changes[key] for key in ("batch_size", "epochs") if key in phase.changes}
            walk = Walk(shuffled, apart, mixture, **{**how, **changed}, steps=phase.steps)
            if phase.heads and phase.heads.keeps_states:
                if phase.heads.kind != "prototype":
                    of_heads, heads, tried_heads = of_heads + len(walk), phase.heads, tried_of(walk)
                asked = {row.task for row in mixture.rows}
                read += self._states((task, "train") for task in stage.tasks)
                read += self._states((task, "train") for task in stage.seen if task.name in asked)
                continue
            batches = batches or tried_of(walk)
            some = range(min(len(walk), _MOST_STEPS))
            passed = [
                row.prompt_length if phase.heads else len(row.ids) for step in some for row in walk.rows_of(step)
            ]
            steps, tokens = steps + len(walk), tokens + round(sum(passed) * len(walk) / len(some))
        parts = [Part(stage.name, TRAINING, steps, tokens, batches=batches)] if steps else []
        parts += rewarded
        if of_heads or read:
            parts.append(Part(stage.name, HEADS, of_heads, read_tokens=read, batches=tried_heads, heads=heads))
        return forecast, parts, any(phase.is_released and phase.heads for phase in phases)

    def _rewarded(self, stage: Stage, policy: PolicyTraining) -> Part:
        """What a phase by reward asks and writes."""
        some = even_rows(policy.rows, min(len(policy.rows), LOOKED_AT))
        prompts = [self.template.prompt_ids(row, self.tokenizer) for row in some]
        sampling = Sampling(policy.max_new_tokens, temperature=policy.temperature, samples_per_prompt=policy.rollouts)
        written = Writing(f"rollouts of {stage.name}", prompts, policy.steps * policy.prompts, sampling)
        return Part(stage.name, POLICY, policy.steps, writings=[written])

    def _encoded(self, own: Sequence[Instance], mixture: Mixture) -> tuple[list[EncodedRow], list[list[EncodedRow]]]:
        """Rows of the right lengths, as the trainer has them: those that are shuffled, and each other group's."""
        shuffled, apart = self._of_length(own, OF_THE_STAGE, self.template), []
        for group in mixture.groups:
            rows = self._of_length(group.rows, group.name, group.template or self.template)
            if group.is_shuffled:
                shuffled += rows
            else:
                apart.append(rows)
        return shuffled, apart

    def _of_length(self, rows: Sequence[Instance], group: str, template: PromptTemplate) -> list[EncodedRow]:
        from everlearn.training.rows import EncodedRow, encode_rows

        known = self._lengths.setdefault(template.name, {})
        kinds: dict[str, list[Instance]] = {}
        for row in rows:
            kinds.setdefault(row.task, []).append(row)
        means = {}
        for kind, of_kind in kinds.items():
            looked_at = even_rows(of_kind, min(len(of_kind), LOOKED_AT))
            if new := [row for row in looked_at if id(row) not in known]:
                encoded = encode_rows(new, template, self.tokenizer, self.recipe.training, self.context)
                known.update(
                    (id(row), (len(one.ids), one.prompt_length)) for row, one in zip(new, encoded, strict=True)
                )
            found = [known[id(row)] for row in looked_at]
            means[kind] = tuple(round(sum(numbers) / len(found)) for numbers in zip(*found, strict=True))
        lengths = [known.get(id(row), means[row.task]) for row in rows]
        return [EncodedRow((0,) * length, prompt, group, at) for at, (length, prompt) in enumerate(lengths)]


def least_bytes(prepared: Prepared, methods: Sequence[Method], seeds: int = 1) -> int:
    """Bytes that runs of these methods take at least: refused is what is certain not to fit.

    Counted are the weights of stages that move them (all runs of a seed may share the first one), a checkpoint where
    there are any, and, where tasks are probed, the states of their prompts under each of these models and the base.
    Other rows, scores and what methods keep beside come on top.

    Args:
        prepared: Of one of the runs.
        methods: Of the runs; they have been checked.
        seeds: How many runs there are of each.
    """
    recipe, sizes = prepared.recipe, sizes_of(prepared.recipe.model)
    moved = [
        [_leaves_weights(prepared, method, stage) for stage in method.stages(prepared.stream)] for method in methods
    ]
    kept = seeds * (any(any(of_run[:1]) for of_run in moved) + sum(sum(of_run[1:]) for of_run in moved))
    rows = 0
    if prepared.stream.scenario and recipe.evaluation.probing.probes:
        rows = sum(len(task.train) + len(task.evaluation) for task in prepared.stream)
    states = rows * sizes.width * _FEATURE_BYTES * (1 + kept)
    return kept * sizes.kept_bytes + states + (_STATE_BYTES * sizes.moving if recipe.training.checkpoint_every else 0)


def _leaves_weights(prepared: Prepared, method: Method, stage: Stage) -> bool:
    """Whether a stage's training leaves weights of the recipe's shape: not heads or parts of another kind."""
    return any(
        (phase.heads is None or phase.heads.moves_backbone)
        and not (phase.tuning and phase.tuning.adds and phase.tuning.after != "merge")
        for phase in _phases_of(prepared, method, stage)
    )


def adapters_of(prepared: Prepared, method: Method, stage: Stage) -> tuple[list[str], int]:
    """Parts of another kind than the recipe's that a stage adds, and how many of the recipe's adapters it ends as."""
    kinds, most = [], 0
    start = ModelState(f"{stage.index - 1}", (models.Part(Path("unmade"), "adapter"),) if stage.index > 1 else ())
    for phase in _phases_of(prepared, method, stage, start):
        if phase.heads is not None and not phase.heads.moves_backbone:
            continue
        kinds += [part.kind for part in phase.tuning.adds.values()] if phase.tuning else []
        grows = phase.tuning is not None and phase.tuning.after == "concatenate"
        most = max(most, stage.index if grows else 1)
    return kinds, most


def _phases_of(prepared: Prepared, method: Method, stage: Stage, start: ModelState | None = None) -> Sequence[Phase]:
    """The phases of a stage of which nothing has been made, perhaps from a start with parts that do not exist."""
    from everlearn.training.answers import order_of

    config = prepared.recipe.training
    sizes: dict[str, Any] = {"batch_size": config.batch_size, "epochs": config.epochs}
    context = replace(unmade(prepared, stage), order=order_of(len(stage.rows), Mixture(), **sizes, seed=0))
    context = context if start is None else replace(context, state=start)
    return method.phases(context)


def unmade(prepared: Prepared, stage: Stage) -> StageContext:
    """The context of a stage of which nothing has been made."""

    def nothing(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a forecast needs no model and no step")

    recipe = prepared.recipe
    return StageContext(
        stage=stage,
        stream=prepared.stream,
        seed=recipe.seed,
        template=prepared.template,
        model=recipe.model,
        training=recipe.training,
        step=nothing,
        steps_of=nothing,
        progress=LineProgress(),
        latest=nothing,
        state=ModelState(f"{stage.index - 1}"),
        base=nothing,
        base_fingerprint=prepared.base_fingerprint,
        generator_for=nothing,
        phase_of=lambda index, name: ModelState(f"{index} {name}"),
    )


def totals(parts: Sequence[Part]) -> Part:
    """The sums; what is expected to be written, or the time, is known where it is known of all."""

    def known(values: Sequence[Any]) -> Any:
        return None if None in values else sum(values)

    return Part(
        "",
        "",
        sum(part.steps for part in parts),
        sum(part.trained_tokens for part in parts),
        sum(part.read_tokens for part in parts),
        most_written=sum(part.most_written for part in parts),
        written=known([part.written for part in parts]),
        seconds=known([part.seconds for part in parts]),
    )
