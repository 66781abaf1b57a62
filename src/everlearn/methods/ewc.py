"""Elastic weight consolidation, as SSR's baseline has it.

From the second stage on, loss = cross-entropy + strength * sum over the tuned parameters of F (theta - theta*)^2:
theta* the values at the end of the previous stage, F the empirical Fisher information there (mean over 200 random
training rows of the stage just finished of the squared gradient of the row's mean token cross-entropy, model in
evaluation mode). No factor 1/2; only the last stage's F is kept, not a sum over stages.
Source: arXiv 2403.01244, Table 5, spec section 8; after Kirkpatrick et al. 2017 (arXiv 1612.00796), whose form has
the factor 1/2 and one term for each earlier task. F is computed when a stage ends, so the first stage needs no pass of
its own (P11).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register

if TYPE_CHECKING:
    import numpy as np

    from everlearn.training.influence import Influence


class EWCOptions(MethodOptions):
    """How strong the pull is and how the Fisher information is estimated."""

    strength: Annotated[float, Field(ge=0)] = 0.1
    """lambda (the published scripts' default; the value behind the paper's table is not known)."""
    fisher_rows: Annotated[int, Field(ge=1)] = 200
    """Random training rows of the finished stage behind F (published)."""


@register
class EWC(Method):
    """Pulls each tuned parameter back as strongly as it mattered to the last stage."""

    Options = EWCOptions
    options: EWCOptions
    traits = frozenset({"penalty"})

    def __init__(self, options: EWCOptions) -> None:
        super().__init__(options)
        self._anchors: dict[str, np.ndarray] = {}
        self._fisher: dict[str, np.ndarray] = {}

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on strength * sum F (theta - theta*)^2."""
        from everlearn.training.quadratic_penalty import Pull

        if context.stage.index == 1:
            return ()
        return [Pull(self.options.strength, self._anchors, self._fisher)]

    def after_stage(self, context: StageContext) -> None:
        """Keeps the weights that the stage has reached and their Fisher information; after the last stage nothing."""
        from everlearn.training.fisher import fisher_information
        from everlearn.training.quadratic_penalty import values_of
        from everlearn.training.rows import encode_rows

        stage = context.stage
        if stage.is_last:
            self._anchors, self._fisher = {}, {}
            return
        loaded = context.latest()
        count = min(self.options.fisher_rows, len(stage.rows))
        drawn = random.Random(context.random_seed("fisher")).sample(stage.rows, count)
        rows = encode_rows(drawn, context.template, loaded.tokenizer, context.training, loaded.context_length)
        with context.progress.step(f"Fisher information of {stage.name}", len(rows)) as tick:
            self._fisher = fisher_information(loaded, rows, tick)
        self._anchors = values_of(loaded.model)

    def state_tensors(self) -> dict[str, np.ndarray]:
        """theta* and F by parameter name."""
        anchors = {f"anchor/{name}": values for name, values in self._anchors.items()}
        return anchors | {f"fisher/{name}": values for name, values in self._fisher.items()}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes theta* and F back."""
        self._anchors = _part("anchor", tensors)
        self._fisher = _part("fisher", tensors)


def _part(kind: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of one kind, by parameter name."""
    return {name.removeprefix(f"{kind}/"): values for name, values in tensors.items() if name.startswith(f"{kind}/")}
