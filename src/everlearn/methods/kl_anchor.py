"""Fine-tuning with an anchor: on each task's rows, predictions stay near those of the base model.

    L = CE + strength * mean over answer tokens of D(base, model)

in every stage, D one of the divergences of `everlearn.training.divergences`: `forward` keeps what the base holds
possible, `reverse` what it holds likely (as in reinforcement learning, but here on given answers, not on the model's
own), `jsd` lies between. The mean is over the answer tokens of the stage's own rows. The anchor never moves: the
base's general ability is protected, not the tasks that were learnt before.

Source: the regulariser of RLHF put on supervised rows; formulas and the meaning of `beta` as in TRL's
`GKDTrainer.generalized_jsd_loss`. The strength was chosen here.

With adapters the base is the model with them switched off: no memory, one more forward pass a step. With full tuning
its weights are loaded once more for each stage. With `keep_outputs` its hidden states at the answers are computed once
and kept by row instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.training.divergences import Direction

if TYPE_CHECKING:
    from everlearn.training.influence import Influence
    from everlearn.training.teacher import Teacher


class KLAnchorOptions(MethodOptions):
    """How strongly predictions are held to the base's, and in which sense."""

    strength: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the divergence (chosen here)."""
    direction: Direction = "forward"
    """`forward`: KL(base || model); `reverse`: KL(model || base); `jsd`: a generalised Jensen-Shannon divergence."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Divides both logits; the divergence is not multiplied by its square."""
    beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of `jsd`: near 0 it behaves as `forward`, near 1 as `reverse` (TRL's convention). Nothing means 0.5."""
    keep_outputs: bool = False
    """Whether what the base says of a row is computed once, before the stage, and kept (on disk: a
    hidden state for each answer token), in the place of one more forward pass in every step. The loss is the same
    within rounding."""

    @model_validator(mode="after")
    def _beta_is_of_jsd(self) -> KLAnchorOptions:
        if self.beta is not None and self.direction != "jsd":
            raise ValueError(f"beta has a meaning for direction: jsd only, not for {self.direction}: leave it out")
        return self


@register
class KLAnchor(Method):
    """Holds the model's predictions to the base model's."""

    Options = KLAnchorOptions
    options: KLAnchorOptions
    title = "KL anchor"
    traits = frozenset({"keeps to the base"})

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The divergence, in every stage."""
        from everlearn.training.divergences import Anchored, divergence

        options = self.options
        terms = partial(
            divergence,
            direction=options.direction,
            temperature=options.temperature,
            beta=0.5 if options.beta is None else options.beta,
        )
        teacher = self._teacher(context) if options.keep_outputs else None
        return [Anchored(options.strength, terms, context.model, teacher)]

    def try_base(self, context: StageContext) -> None:
        """Tries whether outputs can be kept, where they are to be."""
        from everlearn.training.teacher import try_teacher

        if self.options.keep_outputs and context.stage.index == 1:
            try_teacher(context.base(), context.stage.rows, context.template, context.training)

    def _teacher(self, context: StageContext) -> Teacher:
        from everlearn.training.teacher import kept_teacher

        return kept_teacher(
            context.step,
            "kl_anchor/outputs",
            context.base,
            context.base_fingerprint,
            context.stage.rows,
            context.template,
            context.training,
            context.progress,
            keeps_head=context.model.tuning == "full",
        )
