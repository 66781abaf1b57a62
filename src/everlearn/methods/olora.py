"""O-LoRA: an adapter of its own for each task, orthogonal to those before it.

The adapters of earlier tasks are frozen and go on computing, y = W x + s * sum_i B_i A_i x with s = alpha / rank; only
the new pair A_t, B_t moves. From the second stage on

    L = CE + lambda_1 * sum_m sum_jk |(A_past A_t')_jk| + lambda_2 * sum over the new A and B of ||.||_2

over the modules m, A_past being the rows of all earlier A's. After a stage all pairs are kept as one adapter of rank
r * t, which computes their sum, so no task identity is asked for and PEFT loads what is handed back as it is.

Source: arXiv 2310.14152 (EMNLP 2023, findings) and its code (cmnfriend/O-LoRA), from which the formula, the absolute
values and the defaults are; the paper squares the entries (from memory: its body could not be opened). The code reads
A as PEFT's A; a reader of the paper may take its A for PEFT's B. B_t has no gradient from the penalty, and A_t begins
at random, not orthogonal. The penalty grows with rank and modules, so lambda_1 does not carry over to other ranks
unless it is normalised. The official code draws one dropout mask for all pairs, PEFT one for each adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from everlearn.methods.base import Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import MOVING, ModelState, Tuning
from everlearn.training.influence import Influence, Training
from everlearn.training.phase import Phase

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.training.rows import EncodedRow

PAST = "past"
"""Name of the part that holds the pairs of all earlier tasks."""
Form = Literal["abs", "squared"]
Normalise = Literal["none", "mean"]


class OLoraOptions(MethodOptions):
    """How strongly the new adapter is kept orthogonal and small."""

    lambda_1: Annotated[float, Field(ge=0)] = 0.5
    """Of the orthogonality (the code's default; its authors tuned it between 0 and 5)."""
    lambda_2: Annotated[float, Field(ge=0)] = 0.0
    """Of the norms of the new A and B, not squared (the code's default; tuned between 0 and 0.5)."""
    form: Form = "abs"
    """`abs`: the sum of absolute values, as in the code; `squared`: of squares, as in the paper."""
    normalise: Normalise = "none"
    """`none`: a sum, as in the code; `mean`: over entries and modules, comparable between ranks and models."""


def overlap(past: Sequence[Tensor], new: Sequence[Tensor], form: Form, normalise: Normalise) -> Tensor:
    """How far the rows of new A's are from orthogonal to those of earlier ones.

    Args:
        past: A's of all earlier tasks by module, (rank * tasks, inputs).
        new: A's of the new task by module, (rank, inputs).
        form: What is taken of each product of rows.
        normalise: How the products are put together.

    Returns:
        A scalar.
    """
    import torch

    products = [earlier @ own.T for earlier, own in zip(past, new, strict=True)]
    taken = [product.abs() if form == "abs" else product.square() for product in products]
    if normalise == "mean":
        return torch.stack([one.mean() for one in taken]).mean()
    return torch.stack([one.sum() for one in taken]).sum()


def norms(new: Sequence[Tensor]) -> Tensor:
    """The sum of the Frobenius norms of matrices."""
    import torch

    return torch.stack([torch.linalg.vector_norm(matrix) for matrix in new]).sum()


class Orthogonality(Influence):
    """Keeps the adapter that moves orthogonal to the frozen one beside it."""

    def __init__(self, options: OLoraOptions) -> None:
        self._options = options

    def begin(self, training: Training) -> None:
        """Pairs the A's of the new adapter with those of the past by module path, once."""
        weights = dict(training.model.named_parameters())
        self._new = list(training.parameters.values())
        self._own = [weight for name, weight in training.parameters.items() if ".lora_A." in name]
        self._past: list[Tensor] = [
            weights[twin].detach()
            for name in training.parameters
            if ".lora_A." in name and (twin := name.replace(f".{MOVING}.", f".{PAST}.")) in weights
        ]
        assert len(self._past) in (0, len(self._own)), "the adapters sit on the same modules"
        if self._past:
            found = float(overlap(self._past, self._own, "abs", "none").detach())
            assert found > 0, "rows that begin at random are not orthogonal to earlier ones, which have been loaded"

    def penalty(self, rows: Sequence[EncodedRow]) -> Tensor | None:
        """lambda_1 times the overlap plus lambda_2 times the norms."""
        options, found = self._options, []
        if self._past and options.lambda_1:
            found.append(options.lambda_1 * overlap(self._past, self._own, options.form, options.normalise))
        if options.lambda_2:
            found.append(options.lambda_2 * norms(self._new))
        return sum(found[1:], found[0]) if found else None


@register
class OLora(Method):
    """Gives each task an adapter that is orthogonal to those of the tasks before it."""

    Options = OLoraOptions
    options: OLoraOptions
    title = "O-LoRA"
    traits = frozenset({"changes parts", "penalty"})
    lora_alone = ("it gives each task an adapter of its own", "has none")

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """From the second stage on a new adapter beside those before it, all of which are kept as one."""
        past = context.state.as_part(PAST)
        if not past:
            return [Phase()]
        self._tell_if_full(context)
        return [Phase(tuning=Tuning(ModelState(context.state.fingerprint, past), after="concatenate"))]

    def _tell_if_full(self, context: StageContext) -> None:
        """Says when the rows of all A's together are too many to be orthogonal."""
        from everlearn.models.adapters import shapes_of

        folder = context.state.folder
        assert folder is not None, "a stage before has left an adapter"
        if not folder.exists():  # where a run is only planned
            return
        together, inputs = min(shapes_of(folder), key=lambda shape: shape[1])
        rank = together // (context.stage.index - 1) * context.stage.index
        if rank > inputs:
            context.progress.say(
                f"stage {context.stage.name}: the adapters of {context.stage.index} tasks have rank {rank} together, "
                f"more than the {inputs} inputs of their narrowest layer: they cannot all be orthogonal; a lower "
                "model.lora.rank leaves room."
            )

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The penalty, where there is anything to penalise."""
        has_past = context.stage.index > 1
        return [Orthogonality(self.options)] if has_past or self.options.lambda_2 else []
