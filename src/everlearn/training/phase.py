"""One stretch of training with one schedule. A stage has one phase, as a rule, or a few.

All phases of a stage walk the same steps: the order of the stage's rows and the random stream of each step depend on
the stage alone. So a phase that ends at a step, and another that goes on from there with weights and moments, are one
training; and two phases over the same steps see the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from everlearn.data.instance import Instance
from everlearn.data.walk_patterns import Pattern
from everlearn.fingerprints import fingerprint_of
from everlearn.models.state import HeadKind, Tuning
from everlearn.rewards.scorers import ScorerSettings
from everlearn.training.schedules import Schedule

TRAINING = "training"
"""Name of the one phase that a stage has by default."""


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """Classification heads as what a phase trains (`everlearn.training.classes`).

    Attributes:
        kind: Of all heads.
        tasks: Those that have a head, in order of arrival, with their classes in the order of the columns; all of
            them are in the softmax of a class-incremental stream.
        own: Names of the stage's own tasks.
        within_task: Whether the task is known at test (task-incremental): a row's softmax runs over its own task.
        moves_backbone: Whether the language model moves, too; else its states are computed once.
        moves_old: Whether heads of earlier tasks move.
        learning_rate: Of heads.
        weight_decay: Of heads.
        seed: Of heads that are new.
        dropout: Whether it acts on the states of a frozen backbone, which are then computed in every step.
        scale: Factor of cosines.
    """

    kind: HeadKind
    tasks: tuple[tuple[str, tuple[str, ...]], ...]
    own: tuple[str, ...]
    within_task: bool = False
    moves_backbone: bool = False
    moves_old: bool = False
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0
    dropout: bool = False
    scale: float = 1.0

    @property
    def ahead(self) -> int:
        """How many of the last tasks are to come."""
        return len(self.tasks) - 1 - max(at for at, (name, _) in enumerate(self.tasks) if name in self.own)

    @property
    def keeps_states(self) -> bool:
        """Whether states are computed once."""
        return not self.moves_backbone and not self.dropout


@dataclass(frozen=True, slots=True)
class PolicyTraining:
    """Reinforcement as what a phase trains by (`everlearn.training.policy`), in the place of its rows' answers.

    Attributes:
        rows: What is asked; a row's `output` is the reference.
        scorer: Who judges an answer's quality.
        epochs: Passes over the rows; what does not fill a step is left out.
        prompts: Rows of a step.
        rollouts: Completions of each.
        max_new_tokens: Of a completion.
        temperature: At which they are drawn.
        beta: Strength of the KL to the model as it is when the phase begins; 0: none.
        kl_clip: Bound of a token's KL.
        epsilon: Added to the standard deviation of a group's rewards.
        clip: Of the ratio of probabilities, on both sides of 1.
        format_weight: What right tags are worth.
        rounds_quality: Whether quality is rounded to two digits.
        loss: Mean over the tokens of a pass (`bnpo`), or over those of the whole step (`dapo`).
        pass_rows: Completions that are computed at once; None: those of the step.
        rollouts_by: The house's engine, Transformers' `generate`, or vLLM.
        patterns: With which walks are compared, step by step; the weights do not depend on them.
    """

    rows: tuple[Instance, ...]
    scorer: ScorerSettings
    epochs: int = 2
    prompts: int = 8
    rollouts: int = 8
    max_new_tokens: int = 8000
    temperature: float = 0.8
    beta: float = 0.001
    kl_clip: float = 10.0
    epsilon: float = 1e-6
    clip: float = 0.2
    format_weight: float = 0.2
    rounds_quality: bool = True
    loss: Literal["bnpo", "dapo"] = "bnpo"
    pass_rows: int | None = None
    rollouts_by: Literal["engine", "transformers", "vllm"] = "engine"
    patterns: tuple[Pattern, ...] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.epochs * (len(self.rows) // self.prompts)

    def describe(self) -> dict[str, object]:
        """What the trained weights depend on, as JSON."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "patterns"}
        return {**found, "scorer": self.scorer.describe(), "rows": fingerprint_of(row.to_json() for row in self.rows)}


@dataclass(frozen=True, slots=True)
class Phase:
    """What is trained, from where, how long and at which rate.

    Attributes:
        name: Unique within its stage; also the place of its folder, unless it is the released one.
        parent: Phase of the same stage whose weights it starts from; None: the tuning's start.
        moments: `fresh`, or `inherit` those of the optimizer where the start was made, which must have kept them.
        tuning: Which parts move; None: the recipe's adapter or all weights, carried on from what the stage before
            has released. With a parent, its start is the parent's.
        changes: Keys of the recipe's `training` that differ.
        schedule: Factor of the rate by finished steps of the phase; None: that of the recipe over the phase.
        steps: From which step of the stage to which (not included); None: all.
        keeps_moments: Whether a later phase inherits the optimizer's moments.
        is_released: Whether its weights are what the stage has learnt: measured, and the start of the next stage.
            Exactly one phase of a stage is.
        heads: What is trained on the rows' classes instead of the tokens of their answers; None: nothing is.
        policy: How completions are rewarded instead of answers learnt; None: they are not. It has rows of its own.
    """

    name: str = TRAINING
    parent: str | None = None
    moments: Literal["fresh", "inherit"] = "fresh"
    tuning: Tuning | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    schedule: Schedule | None = None
    steps: tuple[int, int] | None = None
    keeps_moments: bool = False
    is_released: bool = True
    heads: HeadTraining | None = None
    policy: PolicyTraining | None = None

    def describe(self, tuning: Tuning) -> dict[str, object] | None:
        """What the weights depend on beyond start, rows and training settings, as JSON; None: nothing.

        Args:
            tuning: Of the phase, as it is trained.
        """
        found: dict[str, object] = {
            "moments": None if self.moments == "fresh" else self.moments,
            "tuning": tuning.describe(),
            "schedule": self.schedule and self.schedule.to_json(),
            "steps": self.steps and list(self.steps),
            "keeps_moments": self.keeps_moments or None,
            "heads": self.heads and asdict(self.heads) | ({"ahead": self.heads.ahead} if self.heads.ahead else {}),
            "policy": self.policy and self.policy.describe(),
        }
        return {key: value for key, value in found.items() if value is not None} or None


def check_phases(phases: Sequence[Phase]) -> None:
    """Holds a method to what a stage's phases must be: a contract between code, not the user's affair."""
    known: list[str] = []
    for phase in phases:
        assert phase.name not in known, f"two phases are called {phase.name}"
        assert phase.parent is None or phase.parent in known, f"{phase.name} starts from a phase before it"
        assert phase.steps is None or phase.steps[0] < phase.steps[1], f"{phase.name} has steps"
        known.append(phase.name)
    assert sum(phase.is_released for phase in phases) == 1, "exactly one phase of a stage is released"
