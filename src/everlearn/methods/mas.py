"""Memory-aware synapses: parameters that the output is sensitive to are pulled back to where the last stage ended.

When a stage ends, a parameter's importance is the mean over rows of the absolute gradient of the squared norm of the
output, |d ||f(x)||^2 / d theta|; no answers are needed. From the second stage on, loss = cross-entropy + strength *
sum of Omega (theta - theta*)^2, Omega the importance of all stages so far, theta* the values at the end of the last.
Source: Aljundi et al. 2018 (arXiv 1711.09601; its body could not be read). For a language model f is taken at the last
token of the prompt: its logits, or as LAMOL's code does their softmax. avalanche averages over batches, not rows, by
which gradients cancel; that is not offered. `accumulate: average` is its way to join stages.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.training.quadratic_penalty import Anchored

if TYPE_CHECKING:
    import numpy as np

    from everlearn.training.influence import Influence


class MASOptions(MethodOptions):
    """How strong the pull is and how importance is estimated."""

    strength: Annotated[float, Field(ge=0)] = 0.1
    """lambda (chosen here, as of L2 and EWC: published values belong to the logits of classifiers)."""
    rows: Annotated[int, Field(ge=1)] = 200
    """Random training rows of the finished stage behind the importance (chosen here, as of EWC)."""
    output: Literal["logits", "probabilities"] = "logits"
    """What of the output's norm is taken: the paper's f, or as in LAMOL's code."""
    accumulate: Literal["sum", "average"] = "sum"
    """Omega so far plus that of the stage (the paper), or `alpha` * so far + (1 - `alpha`) * that of the stage."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the Omega so far with `accumulate: average` (avalanche's default)."""

    @model_validator(mode="after")
    def _alpha_is_of_average(self) -> MASOptions:
        if self.alpha != 0.5 and self.accumulate != "average":
            raise ValueError("alpha has a meaning for accumulate: average only, not for sum: leave it out")
        return self


@register
class MAS(Method):
    """Pulls each tuned parameter back as strongly as the model's output depends on it."""

    Options = MASOptions
    options: MASOptions
    traits = frozenset({"penalty"})
    bears_sharding = True

    def __init__(self, options: MASOptions) -> None:
        super().__init__(options)
        self._kept = Anchored()

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on strength * sum Omega (theta - theta*)^2."""
        from everlearn.training.quadratic_penalty import Pull

        return () if context.stage.index == 1 else [Pull.to(self._kept, self.options.strength)]

    def after_stage(self, context: StageContext) -> None:
        """Adds the importance at the weights that the stage has reached, and keeps them; after the last nothing."""
        from everlearn.training.fisher import importance, output_norm, probability_norm
        from everlearn.training.quadratic_penalty import decayed, values_of
        from everlearn.training.rows import encode_rows

        stage, options = context.stage, self.options
        if stage.is_last:
            self._kept = Anchored()
            return
        loaded = context.latest()
        drawn = random.Random(context.random_seed("mas")).sample(stage.rows, min(options.rows, len(stage.rows)))
        rows = encode_rows(drawn, context.template, loaded.tokenizer, context.training, loaded.context_length)
        norm = output_norm if options.output == "logits" else probability_norm
        with context.progress.step(f"importance after {stage.name}", len(rows)) as tick:
            found = importance(loaded, rows, tick, scalar=norm, power="absolute")
        gamma = 1.0
        if options.accumulate == "average" and self._kept.weights:
            gamma, found = options.alpha, {name: (1 - options.alpha) * values for name, values in found.items()}
        self._kept = decayed(self._kept, Anchored(values_of(loaded.model), found), gamma)

    def state_tensors(self) -> dict[str, np.ndarray]:
        """theta* and Omega by parameter name."""
        return self._kept.to_tensors()

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes them back."""
        self._kept = Anchored.from_tensors(tensors)
