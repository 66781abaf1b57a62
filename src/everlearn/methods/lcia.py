"""LCIA without groups of instructions: an average of the weights with optimal balance takes the place of each stage.

Training itself is plain. From the second stage on an average of the tuned weights runs beside it, each tensor's at a
rate of its own that is computed anew at every step (`everlearn.training.averaging` has the formulas); when the stage
ends, the average is what is saved, measured and trained on. Nothing of earlier tasks is kept, and no term is added.

Source: Qiao et al., "Large Continual Instruction Assistant", ICML 2025 (arXiv 2410.10868), and its published code
(JingyangQiao/CoIN). The paper's body could not be read. The code puts the paper's expression on the *new* weights,
while the paper, as a third party tells it, has it on the *old* average; as its discrete form is inferred, and so used
all but keeps the trained weights, the code's is the default here, an exception to the rule that the paper comes first.
`next` has the constants of the group's later library (ecnu-sii/Continual-NExT), `fixed` is an ordinary moving average.
Gradients are those of the whole batch after clipping; the published run took one process's own.

The published method also puts tasks into groups by their instructions and averages within a group; here all tasks are
one group, as in the later library. The rates depend on the size of tensors: on small models `scale` near 0.01
averages, and with 2 hardly any rate is valid. The history has each step's mean rate and share of fallbacks, the
stage's summary their means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.training.averaging import Form, StartsAs

if TYPE_CHECKING:
    from everlearn.training.influence import Influence


class LCIAOptions(MethodOptions):
    """How the rates of the average are found."""

    coefficient: Form = "code"
    """`code`: as the published code; `next`: the same with the later library's constants; `published`: the paper's,
    inferred; `fixed`: `fallback_rate` at every step."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Factor of the rates of `code` and `next`. Nothing means 2 and 0.01, as in their code."""
    fallback_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rate where the formula gives none between 0 and 1. Nothing means 0.01 (the paper's, on the other side, and the
    code's), with `next` 0.001."""
    average_starts_as: StartsAs | None = None
    """`first_step`: the weights after the stage's first step, as in the code (with a warm-up its rate is 0); `start`:
    those that the stage begins with. Nothing means `first_step`, with `published` `start` (chosen here)."""

    @model_validator(mode="after")
    def _scale_is_of_a_formula(self) -> LCIAOptions:
        if self.scale is not None and self.coefficient not in ("code", "next"):
            raise ValueError(
                f"scale has a meaning for coefficient: code or next only, not for {self.coefficient}: leave it out"
            )
        return self


@register
class LCIA(Method):
    """Replaces a stage's weights by their average with optimal balance."""

    Options = LCIAOptions
    options: LCIAOptions
    traits = frozenset({"averages weights"})

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on the average; one over a fresh adapter would pull it back to nothing."""
        from everlearn.training.averaging import OptimalAverage

        options, is_next = self.options, self.options.coefficient == "next"
        if context.stage.index == 1:
            return ()
        default = 0.001 if is_next else 0.01
        return [
            OptimalAverage(
                options.coefficient,
                scale=options.scale or (0.01 if is_next else 2.0),
                fallback=default if options.fallback_rate is None else options.fallback_rate,
                starts_as=options.average_starts_as
                or ("start" if options.coefficient == "published" else "first_step"),
            )
        ]
