"""SEQ* ("Learn or Recall?"): one classification head a task over the last prompt token's state, and what keeps them.

Sequential fine-tuning with heads forgets its heads, not what they read: a probe trained on all tasks over the final
backbone stays high. So SEQ* keeps heads and states in place, by switches that are free of each other:

    S1 (W, FixB)  the backbone learns from the first task alone, for `warmup_epochs`, and is frozen from then on
    S2 (FixC)     heads of earlier tasks are frozen; they stay in the softmax
    S3 (Cos/Lin)  cosine heads without stored rows, linear ones with replay (stack a rehearsal)
    S4 (P)        heads of tasks to come are there from the start, in the softmax, and learn "not these"

    class-incremental   loss = CE over the heads of all tasks so far (P: of all tasks), answered by their argmax
    task-incremental    loss = CE over the row's own head, summed over tasks; answered by the task's head alone

Rows of words with tags (named entities; `everlearn.data.words`) have a state for each word, and its tag is its class:
class-incremental alone, warmed up on classes (published for words: 3 epochs, linear heads).

Rates are constant, as published; `training.learning_rate` is the backbone's (published: 1e-5 with all weights).
One optimizer serves the whole stream: its moments go on from task to task (`keep_moments`).

Source: arXiv 2312.07887 (ACL 2024) and its code, zzz47zzz/codebase-for-incremental-learning-with-llm (`models/SEQ.py`,
`config/*/SEQ_*.yaml`; read and run). Where they are not followed by default:
- The code takes the states of a causal model from `generate`, under no_grad, so that no head's loss ever moved its
  backbone, whatever FixB said. Here gradients reach it; `detached_features` gives the published behaviour.
- The code leaves dropout on when it computes states of a frozen backbone (`frozen_dropout`); off, states are computed
  once and heads are trained on them, which takes a hundredth of the time.
- Its cosine head normalises the wrong axis of a sequence (`models/heads.py`); gradients are clipped at
  `training.max_grad_norm`, and not at all there.
A bidirectional encoder's `[CLS]` (half of the published tables) is out of scope: models here are causal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from everlearn.data.words import is_of_words
from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import HeadKind, Tuning
from everlearn.training.phase import TRAINING, HeadTraining, Phase
from everlearn.training.schedules import Schedule

WARM_UP = "warm_up"
Preset = Literal[
    "seq_lin",
    "seq_cos",
    "fixb_cos",
    "fixc_cos",
    "fixbc_cos",
    "w_fixbc_lin",
    "p_w_fixbc_lin",
    "w_fixbc_cos",
    "p_w_fixbc_cos",
    "w_fixbc_proto",
]


def _switches(fix_backbone: bool, warmup: int, fix_old: bool, preallocated: bool, head: HeadKind) -> dict[str, Any]:
    return {
        "fix_backbone": fix_backbone,
        "warmup_epochs": warmup,
        "fix_old_heads": fix_old,
        "preallocated": preallocated,
        "head": head,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "seq_lin": _switches(False, 0, False, False, "linear"),
    "seq_cos": _switches(False, 0, False, False, "cosine"),
    "fixb_cos": _switches(True, 0, False, False, "cosine"),
    "fixc_cos": _switches(False, 0, True, False, "cosine"),
    "fixbc_cos": _switches(True, 0, True, False, "cosine"),
    "w_fixbc_lin": _switches(True, 1, True, False, "linear"),
    "p_w_fixbc_lin": _switches(True, 1, True, True, "linear"),
    "w_fixbc_cos": _switches(True, 1, True, False, "cosine"),
    "p_w_fixbc_cos": _switches(True, 1, True, True, "cosine"),
    "w_fixbc_proto": {**_switches(True, 3, True, False, "prototype"), "warmup_target": "classes"},
}
"""The rows of the study's tables, with the warm-up of its generative backbones."""


class SEQOptions(MethodOptions):
    """Which switches are on. Default: SEQ* (W+FixBC+Cos) as published for causal models."""

    preset: Preset | None = None
    """A row of the published tables, whose switches hold where none is named: `seq_lin`, `seq_cos` (plain sequential
    training), `fixb_cos`, `fixc_cos`, `fixbc_cos`, `w_fixbc_lin`, `p_w_fixbc_lin`, `w_fixbc_cos` (SEQ*, the default),
    `p_w_fixbc_cos` (SEQ* with heads made ahead), `w_fixbc_proto` (prototypes)."""
    fix_backbone: bool = True
    """S1: whether the backbone is frozen, after the warm-up."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    """S1: epochs on the first task in which it moves before that, on top of `training.epochs` (published: 1 with
    causal_lm, 3 with classes)."""
    warmup_target: Literal["causal_lm", "classes"] = "causal_lm"
    """S1: what it is warmed up on: `causal_lm`, the tokens of class names as answers; `classes`, its first head."""
    fix_old_heads: bool = True
    """S2: whether heads of earlier tasks are frozen."""
    head: HeadKind = "cosine"
    """S3: `linear`, `cosine`, or `prototype` (cosine to the means of the classes' states, nothing is trained)."""
    cosine_scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Factor of the logits of cosine and prototype heads (published: none, so their loss cannot come near 0)."""
    preallocated: bool = False
    """S4: whether heads of tasks to come are in the softmax from the start. Nothing changes where tasks are known. A
    task that is added to a finished run has the heads of all stages trained anew."""
    detached_features: bool = False
    """Whether the loss of heads never reaches the backbone, as in the published code for causal models."""
    frozen_dropout: bool = False
    """Whether dropout acts on the states of a frozen backbone, as in the published code."""
    keep_moments: bool = True
    """Whether the optimizer's moments go on from task to task, as published."""
    head_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Rate of the heads."""
    head_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decay of the heads, biases too (published: torch's default)."""
    backbone_weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """AdamW's decay of the backbone, in place of `training.weight_decay`."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: object) -> object:
        name = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS[name], **given} if isinstance(name, str) and name in PRESETS else given  # type: ignore[dict-item]

    @model_validator(mode="after")
    def _fits(self) -> SEQOptions:
        if not self.fix_backbone:
            if self.warmup_epochs and "warmup_epochs" in self.model_fields_set:
                raise ValueError("warmup_epochs come before a frozen backbone: set fix_backbone: true, or them to 0")
            if self.head == "prototype":
                raise ValueError("head: prototype moves no weights of the backbone: set fix_backbone: true")
            if self.frozen_dropout:
                raise ValueError("frozen_dropout acts on a frozen backbone: set fix_backbone: true")
        if self.head == "linear" and self.cosine_scale != 1.0:
            raise ValueError("cosine_scale is a factor of cosines: set head: cosine, or leave it out")
        if self.detached_features and self.warms_up and self.warmup_target == "classes":
            raise ValueError(
                "with detached_features a warm-up on classes moves nothing: set warmup_target: causal_lm, or "
                "warmup_epochs: 0"
            )
        if self.frozen_dropout and self.head == "prototype":
            raise ValueError("head: prototype takes its means without dropout: set frozen_dropout: false")
        return self

    @property
    def warms_up(self) -> bool:
        """Whether there is a warm-up."""
        return self.fix_backbone and self.warmup_epochs > 0


@register
class SEQ(Method):
    """Trains a head a task over the states of prompts, and keeps heads and backbone as its switches say."""

    title = "SEQ"
    Options = SEQOptions
    options: SEQOptions
    traits = frozenset({"trains heads"})

    def check(self, facts: Facts) -> None:
        """Refuses streams without classes, a warm-up on words that rows of words do not have, and weights in parts.

        Raises:
            RecipeError: names the key.
        """
        if facts.stream.scenario is None:
            raise RecipeError(
                f"method {self.name}: it trains heads over classes, and this stream says of none: set stream.scenario "
                "to class_incremental or task_incremental."
            )
        options = self.options
        if is_of_words(facts.stream) and options.warms_up and options.warmup_target == "causal_lm":
            raise RecipeError(
                f"method {self.name}: a warm-up on causal_lm learns class names as answers, and rows of words have "
                "tags: set warmup_target: classes (published for words: warmup_epochs: 3 and head: linear)."
            )
        if facts.training.sharding == "fsdp":
            raise RecipeError(
                f"method {self.name}: its heads are whole in every process, and training.sharding: fsdp takes the "
                "weights beneath them apart: set it to none."
            )

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """The warm-up before the first task, then heads, alone or with the backbone.

        The warm-up's epochs are the first of the stage's, so a warm-up on classes and what follows are one training.
        """
        options, training, is_first = self.options, context.training, context.stage.index == 1
        if is_first:
            self._tell(context)
        warmup = options.warmup_epochs if is_first and options.warms_up else 0
        epochs = training.epochs + warmup
        changes = {"epochs": epochs, "weight_decay": options.backbone_weight_decay}
        constant = Schedule("constant")
        heads = self._heads(context, moves_backbone=not options.fix_backbone and not options.detached_features)
        keeps = options.keep_moments and options.head != "prototype"
        if not warmup:
            moments: Literal["fresh", "inherit"] = "fresh" if is_first or not keeps else "inherit"
            return [
                Phase(
                    moments=moments,
                    tuning=Tuning(context.state),
                    changes=changes,
                    schedule=constant,
                    keeps_moments=keeps,
                    heads=heads,
                )
            ]
        from everlearn.training.row_order import Batches

        assert isinstance(context.order, Batches), "a stage's order knows its epochs"
        switch, end = warmup * context.order.per_epoch, context.order.steps_of(epochs)
        on_classes = options.warmup_target == "classes"
        return [
            Phase(
                WARM_UP,
                tuning=Tuning(context.state),
                changes=changes,
                schedule=constant,
                steps=(0, switch),
                keeps_moments=on_classes,
                is_released=False,
                heads=self._heads(context, moves_backbone=True) if on_classes else None,
            ),
            Phase(
                TRAINING,
                WARM_UP,
                "inherit" if on_classes and options.head != "prototype" else "fresh",
                changes=changes,
                schedule=constant,
                steps=(switch, end),
                keeps_moments=keeps,
                heads=heads,
            ),
        ]

    def _heads(self, context: StageContext, *, moves_backbone: bool) -> HeadTraining:
        options, stage = self.options, context.stage
        known = (*stage.seen, *stage.tasks)
        to_come = [task for task in context.stream if task.name not in {one.name for one in known}]
        tasks = (*known, *(to_come if options.preallocated else ()))
        return HeadTraining(
            options.head,
            tuple((task.name, task.classes) for task in tasks),
            tuple(task.name for task in stage.tasks),
            within_task=context.stream.scenario == "task_incremental",
            moves_backbone=moves_backbone,
            moves_old=not options.fix_old_heads,
            learning_rate=options.head_learning_rate,
            weight_decay=options.head_weight_decay,
            seed=context.seed,
            dropout=options.frozen_dropout,
            scale=options.cosine_scale,
        )

    def _tell(self, context: StageContext) -> None:
        training, options = context.training, self.options
        unused = [
            f"training.{key}: {value}"
            for key, value, own in (
                ("scheduler", training.scheduler, "constant"),
                ("warmup_ratio", training.warmup_ratio, 0.0),
                ("weight_decay", training.weight_decay, options.backbone_weight_decay),
            )
            if value != own
        ]
        if unused:
            context.progress.say(
                f"method {self.name} trains at constant rates and with decays of its own, so {', '.join(unused)} "
                f"{'is' if len(unused) == 1 else 'are'} not used."
            )
        if options.preallocated and context.stream.scenario == "task_incremental":
            context.progress.say(
                f"method {self.name}: preallocated changes nothing where tasks are known (stream.scenario)."
            )
