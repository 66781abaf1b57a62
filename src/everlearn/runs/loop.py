"""The stage loop: rehearse, train, consolidate, evaluate, store; stage after stage.

Every result is a step of the run's store, keyed by all that it depends on. Resuming is therefore running again:
finished steps are found, the first unfinished one goes on. A method's own state is stored after each stage and
given back instead of being computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.crew import crew
from everlearn.data.instance import Instance
from everlearn.data.kept import keep_task
from everlearn.files import held, read_json, sha256_of, write_json, write_jsonl
from everlearn.findings import Findings
from everlearn.fingerprints import fingerprint_of
from everlearn.generation.engines import Elsewhere, at_work
from everlearn.layout import BASE_STAGE, ENGINE, FINDINGS
from everlearn.methods.base import Stage, StageContext
from everlearn.methods.stack import assemble, influences_of, parts_of
from everlearn.models.state import HEADS, Kind, ModelState, Part, Tuning
from everlearn.progress import LineProgress, Progress
from everlearn.recipe import NOT_OF_A_STEP, Recipe, cache_folder
from everlearn.room import refuse_without_room
from everlearn.run_folder import RUN, refuse_other, unmade_if_refused
from everlearn.runs.claim import claim, take
from everlearn.runs.description import describe_run, describe_stages
from everlearn.runs.heads import States, train_heads
from everlearn.runs.judge import judge_answers
from everlearn.runs.lengths import rehearsed_within_limits
from everlearn.runs.lineage import Lineage
from everlearn.runs.measure import Measurement
from everlearn.runs.plan import least_bytes, plan_run
from everlearn.runs.prepare import Prepared, prepare, tell_about, tell_targets, with_targets
from everlearn.runs.probing import Probing
from everlearn.seeds import derive
from everlearn.store import RunStore
from everlearn.training.phase import TRAINING

if TYPE_CHECKING:
    from everlearn.data.mixture import Mixture
    from everlearn.evaluation.answering import Answerer
    from everlearn.models.loading import LoadedModel
    from everlearn.training.influence import Influence
    from everlearn.training.phase import Phase


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: The run folder.
        matrix: As in `matrix.json`.
        metrics: As in `metrics.json`.
        probing: As in `probing.json`; None where nothing was probed.
    """

    folder: Path
    matrix: dict[str, object]
    metrics: dict[str, object]
    probing: dict[str, object] | None = None


def execute(
    recipe: Recipe, *, folder: Path | None = None, label: str | None = None, progress: Progress | None = None
) -> RunResult:
    """Runs a recipe from where its folder stands to the end.

    Args:
        recipe: What to run.
        folder: The run folder; nothing means `runs_dir/name`.
        label: How a comparison calls the run; nothing means the method's name.
        progress: Where to show what goes on.

    Raises:
        UserError: something cannot be done as asked; nothing that was computed is lost.
    """
    folder = folder or Path(recipe.runs_dir) / recipe.name
    progress = progress or LineProgress()
    refuse_other(folder, RUN)
    with unmade_if_refused(folder):
        claim(folder, recipe)
        prepared = prepare(recipe, folder, trains=True)
        cache = cache_folder(recipe.runs_dir, recipe.cache_dir)
        refuse_without_room(folder, cache, least_bytes(prepared, [prepared.method]))
        store = RunStore(folder, cache)
    if label is None:  # a comparison has said them once for all its runs
        tell_targets(recipe, prepared, progress)
        tell_about(prepared.stream, progress)
    for note in prepared.formats.notes:
        progress.say(note)
    recipe = with_targets(recipe, prepared)
    with held(store.folder):
        take(store, recipe, prepared.method, prepared.stream, prepared.read)
        with at_work(prepared.engine, progress), counting(prepared.engine, store):
            return _Run(recipe, prepared, store, label or recipe.method.name, progress).go()


def try_base(recipe: Recipe, *, folder: Path, label: str, progress: Progress) -> None:
    """The part of `execute` in which the method sees what the base model can do, where the method looks at all.

    Raises:
        UserError: what it does is of no use to the method.
    """
    if not assemble(recipe.method).overrides("try_base"):
        return
    refuse_other(folder, RUN)
    prepared = prepare(recipe, folder, trains=True)
    recipe = with_targets(recipe, prepared)
    store = RunStore(folder, cache_folder(recipe.runs_dir, recipe.cache_dir))
    with held(store.folder):
        take(store, recipe, prepared.method, prepared.stream, prepared.read)
        with at_work(prepared.engine, progress), counting(prepared.engine, store):
            _Run(recipe, prepared, store, label, progress).try_base()


@contextmanager
def counting(engine: Elsewhere | None, store: RunStore) -> Iterator[None]:
    """Keeps in the manifest what an engine elsewhere is and has done for the run in all, also when it dies."""
    try:
        yield
    finally:
        if engine is not None:
            store.update_manifest(**{ENGINE: engine.told(store.manifest.get(ENGINE))})


class _Run:
    """One run in progress; `go` walks the stages."""

    def __init__(self, recipe: Recipe, prepared: Prepared, store: RunStore, label: str, progress: Progress) -> None:
        from everlearn.runs.models_at_hand import ModelsAtHand

        self.recipe = prepared.recipe
        self.prepared = prepared
        self.formats = prepared.formats
        self._written = recipe  # what `auto` means left open
        self.method = prepared.method
        self.stream = prepared.stream
        self.read = {task.name: task for task in prepared.read}
        self.accounts = {account.task: account for account in prepared.stream.accounts}
        self.template = prepared.template
        self.tokenizer = prepared.facts.tokenizer
        self.base_fingerprint = prepared.base_fingerprint
        self.store = store
        self.label = label
        self.progress = progress
        self.models = ModelsAtHand(self.recipe.model, prepared.engine)
        self.stages = self.method.stages(self.stream)
        self.base = ModelState(prepared.base_fingerprint)
        self._kind: Kind = "adapter" if recipe.model.tuning == "lora" else "model"
        self._phases: dict[tuple[int, str | None], ModelState] = {}
        self._starts: dict[int, str] = {}  # of stages that do not start from the one before: the base, or which stage
        self._order: Sequence[Sequence[int]] = ()  # of the rows of the stage at hand
        self._state = ""  # hash of what the method has kept after the last stage
        self.probing = Probing(self.recipe, self.stream, self.template, self.tokenizer, store, progress, self.models)
        self.measurement = Measurement(
            recipe, self.stream, self.stages, self.template, store, progress, self.models, self.tokenizer, self.probing
        )

    def go(self) -> RunResult:
        """All stages, then the final model and the report."""
        store, progress = self.store, self.progress
        self.try_base()
        self._keep_data()
        about = {key: self.store.manifest[key] for key in ("model", "method", "seed")}
        lineage = Lineage(store, about, self.stages)
        released = self.base
        self.measurement.stage(BASE_STAGE, 0, released, self.stream.tasks)
        answerer = None
        for stage in self.stages:
            trained = self._train(stage, released)
            self._consolidate(stage, trained)
            released = self.method.released(self._context(stage, trained)) or trained
            phases = {name: state for (at, name), state in self._phases.items() if at == stage.index and name}
            lineage.trained(stage, phases, released)
            self._point_to(released)
            self._find(stage, released)
            answerer = self.method.answerer(self._context(stage, released))
            if answerer:
                self.store.update_manifest(answers=_told(answerer))
            shown = self.stream.tasks if self.recipe.evaluation.unseen_tasks else (*stage.seen, *stage.tasks)
            self.measurement.stage(stage.name, stage.index, released, shown, answerer)
            progress.say(self.measurement.line(stage))
        matrix, metrics = self.measurement.finish()
        self._publish(released, answerer, matrix)
        last = self.stages[-1]
        answers = self.measurement.answers(last.index)
        judge_answers(self.recipe, self.stream.tasks, answers, store.steps_below(last.name), progress)
        store.vouch_for_files()
        store.update_manifest(status="complete")
        store.tidy()
        return RunResult(store.folder, matrix, metrics, self.probing.summary)

    def try_base(self) -> None:
        """Lets the method see what the base model can do for each stage, before anything is trained."""
        about = describe_run(self.prepared, self.label, self.stages, self._starts)
        if "plan" not in self.store.manifest or self.store.manifest.get("stages") != about["stages"]:
            about["plan"] = plan_run(self.prepared, self.label).to_json()
        self.store.update_manifest(kind=RUN, **about, status="running", files={})
        for stage in self.stages:
            self.method.try_base(self._context(stage, self.base))

    def _keep_data(self) -> None:
        """Keeps the rows of every task, so that the run goes on where their files are no more."""
        for stage in self.stages:
            for name in (task.name for task in stage.tasks):
                task, place = self.read[name], f"stages/{stage.name}/data/{name}"
                fingerprint = task.fingerprint()
                self.store.step(place, "data", {"task": fingerprint}, partial(keep_task, task, fingerprint))

    def _train(self, stage: Stage, start: ModelState) -> ModelState:
        """Trains the phases of a stage; returns what the released one has made."""
        from everlearn.training.answers import order_of
        from everlearn.training.phase import check_phases

        self._point_to(start)
        self._order = ()
        context = self._context(stage, start)
        mixture = self._rehearsed(stage, context)
        shuffled = sum(len(group.rows) for group in mixture.groups if group.is_shuffled)
        config = self.recipe.training
        sizes = {"batch_size": config.batch_size, "epochs": config.epochs}
        self._order = order_of(len(stage.rows) + shuffled, mixture, **sizes, seed=self._seed(stage))  # type: ignore[arg-type]
        context = replace(context, order=self._order)
        phases = self.method.phases(context)
        check_phases(phases)
        rehearsed, own = mixture.rehearsed, {task.name for task in stage.tasks}
        if rehearsed and all(phase.policy for phase in phases):
            context.progress.say(f"stage {stage.name} is learnt by reward alone: nothing is rehearsed beside it")
            rehearsed = []
        write_jsonl(
            self.store.folder / "stages" / stage.name / "rehearsal.jsonl",
            (replace(row, tokens=()).to_json() for row in rehearsed if row.task not in own),
        )
        for phase in phases:
            what = f"training {stage.name}" + (f" ({phase.name})" if len(phases) > 1 else "")
            tuning = phase.tuning or Tuning(start)
            if phase.parent:
                tuning = replace(tuning, start=self._phases[stage.index, phase.parent])
            elif (begun := self._begun_from(stage, tuning.start)) is not None:
                self._starts[stage.index] = begun
                self.store.update_manifest(stages=describe_stages(self.stages, self._starts))
            state = self._train_phase(stage, phase, tuning, context, mixture, what)
            self._phases[stage.index, phase.name] = state
            if phase.is_released:
                self._phases[stage.index, None] = state
        self._point_to(self._phases[stage.index, None])
        return self._phases[stage.index, None]

    def _train_phase(
        self, stage: Stage, phase: Phase, tuning: Tuning, context: StageContext, mixture: Mixture, what: str
    ) -> ModelState:
        influences = influences_of(self.method, context)
        seed, own = self._seed(stage), stage.rows if mixture.rewritten is None else mixture.rewritten
        config = self.recipe.training
        if phase.changes:
            config = type(config).model_validate({**config.model_dump(), **phase.changes})
        model, precision, dtype = self.recipe.model, {}, {}
        if not self.formats.are_recorded:
            precision = {"precision": self._written.training.precision}
            dtype = {"dtype": self._written.model.dtype}
        inputs = {
            "start": tuning.start.fingerprint,
            "rows": rows_fingerprint([*own, *mixture.rows]),
            "training": {**config.hashed(exclude=NOT_OF_A_STEP), **precision},
            "model": {**model.hashed(exclude=("base", "revision", "device")), **dtype},
            "template": self.template.name,
            "seed": seed,
            "method": self._acting(influences, mixture),
        }
        if (described := mixture.describe()) is not None:
            inputs["mixture"] = described
        if (described := phase.describe(tuning)) is not None:
            inputs["phase"] = described
        checkpoint, beside, heads = tuning.start.folder, tuning.start.beside, phase.heads
        moves_model = heads is None or heads.moves_backbone
        arguments = {
            "rows": own,
            "config": config,
            "template": self.template,
            "seed": seed,
            "what": what,
            "mixture": mixture,
            "influences": influences,
            "phase": phase,
            "tuning": tuning,
        }

        def make(folder: Path) -> None:
            from everlearn.runs.work import Training, train

            if heads is not None and heads.keeps_states:
                most = config.max_prompt_tokens
                states = States(context.step, self.template, self.tokenizer, most, self.models.open, self.progress)
                given = states.of_training(tuning.start, stage, mixture)
                length = self.prepared.facts.context_length
                train_heads(folder, given, self.tokenizer, length, arguments, self.progress)
                return
            self.models.release()
            order = Training(
                self.recipe.model,
                folder,
                load={
                    "checkpoint": checkpoint,
                    "seed": seed,
                    "beside": beside,
                    "moving": list(tuning.moves),
                    "adds": tuning.adds,
                    "trainable": moves_model,
                },
                stage=arguments,
                save={"tuning": tuning} if moves_model else None,
            )
            trained = crew().together(train, order, self.progress)
            assert trained is not None, "the first process has the whole model"
            in_memory.append(trained)

        in_memory: list[LoadedModel] = []
        name = TRAINING if phase.is_released else phase.name
        place = f"stages/{stage.name}/{name}"
        artifact = self.store.step(place, TRAINING, inputs, make)
        parts: tuple[Part, ...] = (Part(artifact.path, self._kind),)
        beneath = artifact.fingerprint
        if not moves_model:
            parts, beneath = tuning.start.backbone.parts, tuning.start.backbone.fingerprint
        if heads is not None:
            parts = (Part(artifact.path, "heads", HEADS), *parts)
        state = ModelState(artifact.fingerprint, parts, (tuning.start,), beneath if heads else "")
        if in_memory and moves_model and not beside:  # else it was saved in another form
            self.models.point_to(artifact.path, in_memory[0])
        return state

    def _begun_from(self, stage: Stage, start: ModelState) -> str | None:
        """What a stage starts from where that is not the stage before: the base, or the name of an earlier one."""
        if stage.index > 1 and not start.parts:
            return "base"
        earlier = self.stages[: max(0, stage.index - 2)]
        return next((other.name for other in earlier if self._phases[other.index, None] == start), None)

    def _point_to(self, state: ModelState) -> None:
        """Makes a state the model at hand."""
        self.models.point_to(state.folder, beside=state.beside)

    def _rehearsed(self, stage: Stage, context: StageContext) -> Mixture:
        """What the method rehearses; what becomes of rows that are too long is told in the manifest."""
        mixture, groups = self.method.rehearsal(context), []
        for group in mixture.groups:
            if group.template is not None:
                groups.append(group)
                continue
            rows, notes = rehearsed_within_limits(group.rows, self.recipe.training, self.template, self.tokenizer)
            groups.append(replace(group, rows=tuple(rows)))
            for task, note in notes.items():
                told = self.accounts[task].notes
                told += [said] if (said := f"stage {stage.name}: {note}") not in told else []
                self.progress.say(f"stage {stage.name}: task {task}: {note}")
            if notes:
                self.store.update_manifest(data=[account.to_json() for account in self.stream.accounts])
        return replace(mixture, groups=tuple(groups))

    def _acting(self, influences: Sequence[Influence], mixture: Mixture) -> object:
        """What the trained weights depend on through the method, beyond its rows."""
        if not influences and all(group.drawn is None for group in mixture.groups):
            return None
        method = self.method
        acting = [[type(influence).__name__, dict(influence.inputs())] for influence in influences]
        return [method.name, method.versions, method.described(), self._state, acting]

    def _consolidate(self, stage: Stage, trained: ModelState) -> None:
        """Calls `after_stage` once; a resumed run gets the stored state back instead."""
        if not self.method.overrides("after_stage"):
            return
        place = f"stages/{stage.name}/state"

        def make(folder: Path) -> None:
            from safetensors.numpy import save_file

            self.method.after_stage(self._context(stage, trained))
            save_file(dict(self.method.state_tensors()), folder / "state.safetensors")
            write_json(folder / "state.json", self.method.state_json())

        inputs = {
            "model": trained.fingerprint,
            "method": [self.method.name, self.method.described()],
            "version": self.method.versions,
            "tasks": [task.fingerprint() for task in (*stage.seen, *stage.tasks)],
            "seed": self.recipe.seed,
            "stage": [stage.index, stage.is_last],
        }
        artifact = self.store.step(place, "state", inputs, make, shared=False)
        self._state = fingerprint_of([sha256_of(artifact.path / name) for name in ("state.json", "state.safetensors")])
        from safetensors.numpy import load_file

        values = read_json(artifact.path / "state.json")
        assert isinstance(values, dict), "a method's JSON state is a mapping"
        self.method.load_state(load_file(artifact.path / "state.safetensors"), values)

    def _find(self, stage: Stage, released: ModelState) -> None:
        """Stores what the method has found in the stage."""
        if not self.method.overrides("findings"):
            return

        def make(folder: Path) -> None:
            found = self.method.findings(self._context(stage, released)) or Findings()
            write_json(folder / "findings.json", found.to_json())

        inputs = {
            "model": released.fingerprint,
            "method": [self.method.name, self.method.versions, self.method.described(), self._state],
            "stage": [stage.index, stage.is_last],
        }
        self.store.step(f"stages/{stage.name}/{FINDINGS}", FINDINGS, inputs, make, shared=False)

    def _publish(self, released: ModelState, answerer: Answerer | None, matrix: Mapping[str, object]) -> None:
        """The final model, and others that answer, as a folder that Transformers or PEFT load as it is."""
        from everlearn.runs.publish import publish

        assert released.folder is not None or released.heads, "what is released has a part that is carried on"
        assert not released.beside, "what is released is the base with one part, and heads"
        publish(
            released,
            self.store.folder / "model",
            self.store.folder / ".partial" / "handed-back",
            self.recipe,
            self.stream,
            self.template,
            self.tokenizer,
            self.label,
            matrix,
            (next(part.name for part in parts_of(self.method) if part.overrides("answerer")), answerer)
            if answerer
            else None,
        )

    def _context(self, stage: Stage, state: ModelState) -> StageContext:
        names = {other.index: other.name for other in self.stages}
        return StageContext(
            stage=stage,
            stream=self.stream,
            seed=self.recipe.seed,
            template=self.template,
            model=self.recipe.model,
            training=self.recipe.training,
            step=self.store.steps_below(stage.name),
            steps_of=lambda index: self.store.steps_below(names[index]),
            progress=self.progress,
            latest=self.models.latest,
            state=state,
            base=self.models.base,
            base_fingerprint=self.base_fingerprint,
            generator_for=self.models.generator_for,
            written_by=self.models.written_by,
            phase_of=lambda index, name: self._phases[index, name],
            order=self._order,
        )

    def _seed(self, stage: Stage) -> int:
        """Of a stage's training."""
        return derive(self.recipe.seed, f"stage-{stage.index}", "training")


def _told(answerer: Answerer) -> dict[str, object]:
    """What the report says of how models are chosen."""
    return {"models": len(answerer.models), "knows_task": answerer.knows_task}


def rows_fingerprint(rows: Sequence[Instance]) -> str:
    """Hash of rows in their order."""
    return fingerprint_of(row.to_json() for row in rows)
