"""Elastic weight consolidation: as SSR's baseline has it, online, or as the sum over all earlier stages.

From the second stage on, loss = cross-entropy + strength * sum over the tuned parameters of F (theta - theta*)^2:
theta* the values at the end of the previous stage, F the empirical Fisher information there (mean over 200 random
training rows of the stage just finished of the squared gradient of the row's mean token cross-entropy, model in
evaluation mode). No factor 1/2; only the last stage's F is kept, not a sum over stages.
Source: arXiv 2403.01244, Table 5, spec section 8; after Kirkpatrick et al. 2017 (arXiv 1612.00796), whose form has
the factor 1/2 and one term for each earlier task (`half: true, memory: sum`). F is computed when a stage ends, so the
first stage needs no pass of its own (P11).

`memory: online` (Schwarz et al. 2018, arXiv 1805.06370): F = gamma * F so far + F of the stage, pulled to where the
last stage ended. `memory: sum` keeps one pull for all stages, with the value and gradient of the sum
(`everlearn.training.quadratic_penalty.summed`): two numbers a parameter whatever the number of stages. Both papers'
bodies could not be read; the forms are as commonly known, the recursion as avalanche and mammoth have it (their
penalties lack the 1/2 as well). No published strength carries over from one F to another: the history has the penalty
of each step beside the loss and the mean of F.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.training.quadratic_penalty import Anchored

if TYPE_CHECKING:
    import numpy as np

    from everlearn.training.fisher import Scalar
    from everlearn.training.influence import Influence


class EWCOptions(MethodOptions):
    """How strong the pull is, what of earlier stages it holds, and how the Fisher information is estimated."""

    added: ClassVar[frozenset[str]] = frozenset({"memory", "gamma", "half", "fisher", "row_loss"})

    strength: Annotated[float, Field(ge=0)] = 0.1
    """lambda (the published scripts' default; the value behind the paper's table is not known)."""
    fisher_rows: Annotated[int, Field(ge=1)] = 200
    """Random training rows of the finished stage behind F (published)."""
    memory: Literal["last", "online", "sum"] = "last"
    """`last`: the pull of the last stage alone (published); `online`: F added up, pulled to the last stage's end;
    `sum`: the pulls of all earlier stages."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Factor of the F so far with `memory: online` (1: as mammoth's presets)."""
    half: bool = False
    """Whether the penalty has the factor 1/2 of Kirkpatrick et al. (the published scripts leave it out)."""
    fisher: Literal["empirical", "sampled"] = "empirical"
    """`empirical`: of the gold answers (published); `sampled`: of tokens that the model draws at their places, which
    estimates the true Fisher information."""
    row_loss: Literal["mean", "sum"] = "mean"
    """A row's loss is the mean of its tokens' (published), or their sum, its log-likelihood."""

    @model_validator(mode="after")
    def _gamma_is_of_online(self) -> EWCOptions:
        if self.gamma != 1.0 and self.memory != "online":
            raise ValueError(f"gamma has a meaning for memory: online only, not for {self.memory}: leave it out")
        return self


@register
class EWC(Method):
    """Pulls each tuned parameter back as strongly as it mattered to the stages before."""

    Options = EWCOptions
    options: EWCOptions
    traits = frozenset({"penalty"})
    bears_sharding = True

    def __init__(self, options: EWCOptions) -> None:
        super().__init__(options)
        self._kept = Anchored()

    @property
    def versions(self) -> object:
        """A later one where tokens are drawn; the published form is as it was."""
        return 2 if self.options.fisher == "sampled" else self.version

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on strength * sum F (theta - theta*)^2."""
        from everlearn.training.quadratic_penalty import Pull

        if context.stage.index == 1:
            return ()
        return [Pull.to(self._kept, self.options.strength / (2 if self.options.half else 1))]

    def after_stage(self, context: StageContext) -> None:
        """Keeps the weights that the stage has reached and their Fisher information; after the last stage nothing."""
        from everlearn.training.fisher import fisher_information
        from everlearn.training.quadratic_penalty import decayed, summed, values_of
        from everlearn.training.rows import encode_rows

        stage, options = context.stage, self.options
        if stage.is_last:
            self._kept = Anchored()
            return
        loaded = context.latest()
        count = min(options.fisher_rows, len(stage.rows))
        drawn = random.Random(context.random_seed("fisher")).sample(stage.rows, count)
        rows = encode_rows(drawn, context.template, loaded.tokenizer, context.training, loaded.context_length)
        with context.progress.step(f"Fisher information of {stage.name}", len(rows)) as tick:
            found = fisher_information(loaded, rows, tick, scalar=self._scalar(context))
        now = Anchored(values_of(loaded.model), found)
        if options.memory == "sum":
            self._kept = summed(self._kept, now)
        else:
            self._kept = decayed(self._kept, now, options.gamma if options.memory == "online" else 0.0)

    def _scalar(self, context: StageContext) -> Scalar:
        """Whose squared gradients are averaged."""
        from everlearn.training.fisher import OfSampledTokens, answer_loss, negative_log_likelihood

        loss = answer_loss if self.options.row_loss == "mean" else negative_log_likelihood
        return OfSampledTokens(loss, context.random_seed("tokens")) if self.options.fisher == "sampled" else loss

    def state_tensors(self) -> dict[str, np.ndarray]:
        """theta* and F by parameter name."""
        return self._kept.to_tensors("fisher")

    def state_json(self) -> dict[str, object]:
        """What is left of the sum of pulls where it is least."""
        return {"constant": self._kept.constant} if self.options.memory == "sum" else {}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes theta* and F back."""
        constant = values.get("constant", 0.0)
        assert isinstance(constant, float), "it was stored as a number"
        self._kept = Anchored.from_tensors(tensors, "fisher", constant=constant)
