"""What a method is: a class that overrides the few hooks it needs.

The stage loop (`everlearn.runs.loop`) calls the hooks in the order of this file. A hook returns a value (stages,
rows, influences); it never reaches into the engine: what acts while a stage trains is an `Influence`
(`everlearn.training.influence`). What must survive a kill is declared in `state_tensors` / `state_json`.

Nothing here knows any method by name. A method is one file of this folder with one class decorated by
`everlearn.methods.registry.register`; adding or deleting the file is all there is to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from everlearn.artifacts import StepRunner
from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.data.mixture import Mixture
from everlearn.errors import RecipeError
from everlearn.evaluation import answering
from everlearn.findings import Findings
from everlearn.models.state import ModelState
from everlearn.recipe import Section

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Generator
    from everlearn.generation.writing import Writing
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress
    from everlearn.recipe import ModelConfig, TrainingConfig
    from everlearn.training.influence import Influence
    from everlearn.training.phase import Phase

Trait = Literal[
    "averages weights",
    "changes parts",
    "distils",
    "is told tasks",
    "keeps tasks apart",
    "keeps to the base",
    "merges parts",
    "penalty",
    "projects gradients",
    "rehearses",
    "rewrites own rows",
    "starts elsewhere",
    "synthesizes",
    "trains by reward",
    "trains heads",
    "trains once",
    "weighs own rows",
]
"""What a method is, as far as another may not bear it: `everlearn.methods.stack` refuses pairs of them."""


class MethodOptions(Section):
    """Options of a method: frozen, unknown keys refused, documented by the string under each field."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a run.

    Attributes:
        index: 1-based position in the run.
        tasks: The task (multi-task runs: tasks) trained at this stage.
        seen: Tasks of the earlier stages, in order of arrival.
        is_last: Whether no stage follows.
    """

    index: int
    tasks: tuple[Task, ...]
    seen: tuple[Task, ...]
    is_last: bool

    @property
    def name(self) -> str:
        """Folder name of the stage, such as `03-qa`."""
        return f"{self.index:02d}-{self.tasks[0].name if len(self.tasks) == 1 else 'all'}"

    @property
    def rows(self) -> tuple[Instance, ...]:
        """Training rows of the stage's own tasks, in task order."""
        return tuple(row for task in self.tasks for row in task.train)


@dataclass(frozen=True)
class Facts:
    """What a method may look at before anything is trained.

    Attributes:
        stream: The tasks, their rows as they will be trained on.
        tokenizer: The model's.
        context_length: Tokens that the model takes.
        model: How the model is loaded and tuned.
        training: How the stages are trained.
        measured: The general text on which forgetting is measured.
        kept: From the name of an artifact, such as `gere/given`, to where the run has it from before.
    """

    stream: TaskStream
    tokenizer: PreTrainedTokenizerBase
    context_length: int
    model: ModelConfig
    training: TrainingConfig
    measured: Callable[[], Sequence[str]] = tuple
    kept: Callable[[str], Iterable[Path]] = lambda name: ()


@dataclass(frozen=True)
class Forecast:
    """What is known of a method's part in a stage before anything runs.

    Attributes:
        mixture: As `rehearsal` is going to give it; rows that are not there yet are replaced by others like them.
        writings: What models write for it, before or after the stage's training.
        read_tokens: Tokens that models read for it beside that and beside training.
        unknown: What else it does that takes time, in a few words behind the method's name.
    """

    mixture: Mixture = field(default_factory=Mixture)
    writings: Sequence[Writing] = ()
    read_tokens: int = 0
    unknown: Sequence[str] = ()


@dataclass(frozen=True)
class StageContext:
    """What a hook may use: the stage, the models, the tools of the lower floors, and storage.

    Attributes:
        stage: The stage at hand.
        stream: All tasks, those to come as well: what is made ahead for them, or measured with their rows.
        seed: Root seed of the run; use `random_seed(purpose)` for a stream.
        template: How an instance becomes a prompt.
        model: How the model is loaded and tuned.
        training: How the stages are trained.
        step: Runs a step once and stores its artifact under the stage's folder.
        steps_of: The step runner of an earlier stage, by its 1-based index.
        progress: Where to show what goes on.
        latest: The model at hand: before training the one that it starts from; in `after_stage`, the one that it
            has made.
        state: That model by reference.
        base: The base model theta(0), loaded on first call (adapter switched off where that is the same).
        base_fingerprint: Identifies the base model's weights.
        generator_for: A generation engine over a loaded model.
        written_by: Belongs to the inputs of every step in which a model writes: the engine, where it is not this
            process.
        phase_of: What a phase of an earlier stage has made, by the stage's 1-based index and the phase's name (None:
            the phase that is released).
        order: Numbers of the rows that each optimizer step of the stage trains by the recipe's `training`: the stage's
            own rows, then those shuffled among them; known from `phases` on.
    """

    stage: Stage
    stream: TaskStream
    seed: int
    template: PromptTemplate
    model: ModelConfig
    training: TrainingConfig
    step: StepRunner
    steps_of: Callable[[int], StepRunner]
    progress: Progress
    latest: Callable[[], LoadedModel]
    state: ModelState
    base: Callable[[], LoadedModel]
    base_fingerprint: str
    generator_for: Callable[[LoadedModel], Generator]
    phase_of: Callable[[int, str | None], ModelState]
    order: Sequence[Sequence[int]] = ()
    written_by: Mapping[str, object] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return len(self.order)

    @property
    def latest_fingerprint(self) -> str:
        """Identifies the weights of the model at hand."""
        return self.state.fingerprint

    def random_seed(self, purpose: str) -> int:
        """A seed of its own for each purpose at each stage, derived from the run's seed."""
        from everlearn.seeds import derive

        return derive(self.seed, f"stage-{self.stage.index}", purpose)


_UNFORESEEN = {
    "try_base": "what it lets the base model do first",
    "rehearsal": "what it rehearses",
    "after_stage": "what it does after a stage",
    "released": "its merge",
}
"""Hooks that take time of their own, which nobody can tell for a method without a forecast."""


class Method:
    """Base class; every hook's default does nothing."""

    name: str = ""
    """Set by `register`."""
    title: str = ""
    """How reports call it. Left out: the name, in capitals where it has at most three letters."""
    version: ClassVar[int] = 1
    """Of the method's code: raised when its results change, so that nothing stored by older code is reused."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    Answerer: ClassVar[type[answering.Answerer]] = answering.Answerer
    """Of a method that overrides `answerer`: what reads its rule from files."""
    traits: frozenset[Trait] = frozenset()
    """What it is, for those that cannot be stacked with it; some options add to it."""
    frees: ClassVar[Mapping[Trait, str]] = {}
    """Of traits that an option adds: which option is to be set to what, so that the method has it no more."""

    lora_alone: ClassVar[tuple[str, str] | None] = None
    """Of a method that needs `model.tuning: lora`: what it does, and what full tuning does instead."""
    bears_heads: ClassVar[bool] = False
    """Whether its influences act where heads are trained, too: there `Seen.states` are the logits of classes."""
    bears_sharding: ClassVar[bool] = False
    """Whether its influences compute the same where weights in training are parts of tensors (`DTensor`: full tuning
    with `training.sharding: fsdp`); else it is refused there. Methods without influences need not say."""

    def __init__(self, options: MethodOptions) -> None:
        self.options = options

    def overrides(self, hook: str) -> bool:
        """Whether a hook does more than the default."""
        return getattr(type(self), hook) is not getattr(Method, hook)

    def described(self) -> dict[str, object]:
        """The options as JSON, for the manifest and for fingerprints."""
        return self.options.hashed()

    @property
    def versions(self) -> object:
        """The version as JSON, for fingerprints."""
        return self.version

    # Once per run.

    def stages(self, stream: TaskStream) -> list[Stage]:
        """Splits the stream into stages. Default: one stage a task."""
        return one_stage_per_task(stream.tasks)

    def template(self, template: PromptTemplate) -> PromptTemplate:
        """How instances are worded, in training, measuring and what is handed back. Default: as the recipe says.

        Args:
            template: The recipe's.

        Returns:
            A template of a name of its own, or the given one.
        """
        return template

    def tokens(self, stream: TaskStream) -> Sequence[str]:
        """Tokens that the model gains, for the method's wording; those of later tasks behind those of earlier ones."""
        return ()

    def check(self, facts: Facts) -> None:
        """Refuses (UserError) what cannot work, before any training. Default: full tuning, where `lora_alone` says so.

        Raises:
            RecipeError: says why, and what to set.
        """
        if self.lora_alone and facts.model.tuning != "lora":
            does, instead = self.lora_alone
            raise RecipeError(
                f"method {self.name}: {does}, and model.tuning: {facts.model.tuning} {instead}: set model.tuning to "
                "lora."
            )

    def try_base(self, context: StageContext) -> None:
        """Refuses (UserError) what the base model turns out not to be able to do for a stage.

        Called for every stage before the first training, when the base is the latest model; what is made here is made
        in steps that are used later.
        """

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """What the stage is going to cost beside plain training, for the plan of a run; changes nothing.

        Args:
            context: Of the stage, without any model or step: nothing has run, and this method has no state yet.
            facts: All that is known.
        """
        return Forecast(unknown=[f"{self.name}: {told}" for hook, told in _UNFORESEEN.items() if self.overrides(hook)])

    # Before a stage.

    def rehearsal(self, context: StageContext) -> Mixture:
        """What to mix with the stage's own rows; rows of the earliest task first."""
        return Mixture()

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """In which phases the stage is trained. Default: one, which carries on what the stage before has released."""
        from everlearn.training.phase import Phase

        return [Phase()]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """What acts while a phase trains; made for it, before the model is loaded, from options and state alone.

        Without any, the trained model is shared with every other run that has the same rows and settings.
        """
        return ()

    # After a stage.

    def after_stage(self, context: StageContext) -> None:
        """Consolidates: importance weights, new rehearsal rows."""

    def released(self, context: StageContext) -> ModelState | None:
        """Another model than the trained one, to be measured, handed back, and the next stage's start: a merge.

        It is made in a step, like every artifact. Default: nothing, the trained model is released.
        """
        return None

    def findings(self, context: StageContext) -> Findings | None:
        """What the method has found in the stage, for the report; called once, when all of the stage is made.

        Values that change from step to step are noted by influences instead (`OptimizerStep.note`).
        """
        return None

    def answerer(self, context: StageContext) -> answering.Answerer | None:
        """Whose weights answer which rows, as an object of `Answerer`. Default: the released model answers all."""
        return None

    # State that survives a kill.

    def state_tensors(self) -> dict[str, np.ndarray]:
        """Named float arrays to store after `after_stage`."""
        return {}

    def state_json(self) -> dict[str, object]:
        """JSON-serialisable state to store after `after_stage`."""
        return {}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes back what `state_tensors` and `state_json` gave."""


def one_stage_per_task(tasks: Sequence[Task]) -> list[Stage]:
    """The ordinary course: task after task."""
    return [
        Stage(index=i + 1, tasks=(task,), seen=tuple(tasks[:i]), is_last=i + 1 == len(tasks))
        for i, task in enumerate(tasks)
    ]
