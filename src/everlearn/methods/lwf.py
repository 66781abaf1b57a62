"""Learning without forgetting: on a new task's rows, keep predicting as the model of the last stage did.

From the second stage on, with z the logits in training, y those of the last stage's model at the same answer tokens,

    L = CE + alpha * tau^2 * mean over tokens of KL(softmax(y / tau) || softmax(z / tau))

The mean is over the answer tokens of the stage's own rows; rehearsed rows, where methods are stacked, have none of
it. No data is kept. Source: Li and Hoiem, ECCV 2016 (arXiv 1606.09282, from memory: its body could not be opened), for
a classifier's old outputs; for a language model the form of EasyCL's distillation term, at the positions that predict
the answer (its code, like others, compares one token late). A gold answer and the old predictions pull apart by
construction, so this is the weaker, the less the tasks resemble each other.

The last stage's model is a frozen copy of the weights in training, an adapter or all of them, and one more forward
pass over the rows (of several steps at once where they are few); or its hidden states at the answers are computed once
and kept by row (`keep_outputs`), of which the head makes the same logits again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    from everlearn.training.influence import Influence
    from everlearn.training.teacher import Teacher


class LwFOptions(MethodOptions):
    """How strongly and how softly the last stage's predictions are kept."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation (the paper's, from memory; EasyCL and mammoth take 0.5)."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 2.0
    """tau (the paper's, from memory, and that of all code that was read)."""
    tau_squared: bool = True
    """Multiplies by tau^2, so that gradients keep their size whatever tau is (EasyCL does, mammoth and avalanche do
    not: there the same alpha acts tau^2 times weaker)."""
    keep_outputs: bool = False
    """Whether what the last stage's model says of a row is computed once, before the stage, and kept (on disk: a
    hidden state for each answer token), in the place of one more forward pass in every step. The loss is the same
    within rounding."""


@register
class LwF(Method):
    """Distils the last stage's model into the next one on the next task's rows."""

    Options = LwFOptions
    options: LwFOptions
    title = "LwF"
    traits = frozenset({"distils"})

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on the distillation, from the model that training starts with."""
        from everlearn.training.divergences import Anchored, divergence

        options = self.options
        if context.stage.index == 1:
            return ()
        strength = options.alpha * (options.temperature**2 if options.tau_squared else 1.0)
        terms = partial(divergence, temperature=options.temperature)
        return [Anchored(strength, terms, teacher=self._teacher(context) if options.keep_outputs else None)]

    def try_base(self, context: StageContext) -> None:
        """Tries whether outputs can be kept, where they are to be."""
        from everlearn.training.teacher import try_teacher

        if self.options.keep_outputs and context.stage.index == 1:
            try_teacher(context.base(), context.stage.rows, context.template, context.training)

    def _teacher(self, context: StageContext) -> Teacher:
        from everlearn.training.teacher import kept_teacher

        return kept_teacher(
            context.step,
            "lwf/outputs",
            context.latest,
            context.latest_fingerprint,
            context.stage.rows,
            context.template,
            context.training,
            context.progress,
            keeps_head=context.model.tuning == "full",
        )
