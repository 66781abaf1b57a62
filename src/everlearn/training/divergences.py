"""How far the predictions of two models are apart, and training that is held to those of another view of the model.

    forward  KL(q || p) = sum_v q_v (log q_v - log p_v)       q the other's, p those in training
    reverse  KL(p || q)
    jsd      beta KL(q || m) + (1 - beta) KL(p || m),         m = (1 - beta) p + beta q

with p = softmax(z / temperature), for each predicted token. All are computed in float32: they are differences of
nearly equal numbers. (The convention of `beta` is that of TRL's `generalized_jsd_loss`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

from everlearn.data.mixture import OWN
from everlearn.training.influence import Influence, Seen, Training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from everlearn.recipe import ModelConfig
    from everlearn.training.losses import Head
    from everlearn.training.rows import EncodedRow
    from everlearn.training.teacher import Teacher

Direction = Literal["forward", "reverse", "jsd"]


def divergence(
    scores: Tensor, other: Tensor, *, direction: Direction = "forward", temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """The divergence of each token's prediction from the other model's.

    Args:
        scores: Logits in training, (tokens, vocabulary).
        other: The other model's logits, of the same shape.
        direction: Which of the formulas above.
        temperature: Divides both logits.
        beta: Of `jsd`, between 0 and 1.

    Returns:
        One value a token, (tokens,).
    """
    from everlearn.training.losses import DivergenceByToken

    found: Tensor = DivergenceByToken.apply(scores, other, direction, temperature, beta)
    return found


class Anchored(Influence):
    """Adds strength * the mean divergence over the answer tokens of a group, which is the stage's own rows by default.

    Args:
        strength: Factor of the mean.
        divergence: Logits of both to a value a token.
        base: The base model is the other one, of this description; None: the model as it is when the phase begins.
        teacher: What the other one has said of the stage's own rows; None: it is asked in every step.
        group: Whose answer tokens.
    """

    reads = reads_logits = True

    def __init__(
        self,
        strength: float,
        divergence: Callable[[Tensor, Tensor], Tensor],
        base: ModelConfig | None = None,
        teacher: Teacher | None = None,
        group: str = OWN,
    ) -> None:
        assert teacher is None or group == OWN, "outputs are kept of the stage's own rows"
        self._group = group
        self._strength, self._divergence, self._base, self._teacher = strength, divergence, base, teacher

    def inputs(self) -> Mapping[str, object]:
        """The kept outputs; how strongly they are kept is said by the method's options."""
        return {} if self._teacher is None else {"teacher": self._teacher.fingerprint}

    def begin(self, training: Training) -> None:
        """Makes the other view: the adapters off, or a frozen copy of the weights in training."""
        from peft import PeftModel

        if self._teacher is not None:
            self._take(self._teacher, training)
            return
        self._view: Callable[[], AbstractContextManager[object]]
        if self._base is not None and isinstance(training.model, PeftModel):
            from everlearn.models.adapters import adapter_off

            self._view = partial(adapter_off, training.model)
            return
        values = self._base_weights() if self._base is not None else training.parameters
        kept = [(weight, values[name].detach().clone()) for name, weight in training.parameters.items()]
        self._view = partial(exchanged, kept)

    def _base_weights(self) -> Mapping[str, Tensor]:
        from everlearn.models.loading import load_model

        assert self._base is not None, "asked for where the base is the other model"
        return dict(load_model(self._base).model.named_parameters())

    def units(self, rows: Sequence[EncodedRow]) -> int:
        """Answer tokens of the group."""
        return sum(row.answer_count for row in rows if row.group == self._group)

    def term(self, seen: Seen) -> Tensor | None:
        """The sum over the tokens of the group; nothing is computed again where there are none."""
        from everlearn.training.losses import answer_divergence

        def wanted(row: EncodedRow) -> bool:
            return row.group == self._group

        places = seen.places(wanted)
        if not len(places) or not self._strength:
            return None
        if self._teacher is None:
            other, other_head = seen.steadily(self._view, wanted)
        else:
            other, other_head = self._kept(self._teacher, seen)
        states, logits = seen.states.index_select(0, places), seen.logits_at(places)
        found = answer_divergence(states, seen.head, other, other_head, self._divergence, logits)
        return self._strength * found

    def _take(self, teacher: Teacher, training: Training) -> None:
        """Finds the head, and sees that the kept rows are those in training."""
        from everlearn.errors import RecipeError

        self._head = teacher.head(training.device)
        own = [row for row in training.rows if row.group == OWN]
        if any(teacher.outputs.length(row.number) != row.answer_count for row in own):
            raise RecipeError(
                "the outputs that were kept are of other rows than those in training, which another method of the "
                "stack has rewritten: set keep_outputs: false."
            )

    def _kept(self, teacher: Teacher, seen: Seen) -> tuple[Tensor, Head | None]:
        """What the teacher has said of the own rows of a part, in their order."""
        from everlearn.errors import ModelError
        from everlearn.training.losses import head_of
        from everlearn.training.teacher import STATES

        if seen.head is None:
            raise ModelError(
                "rows are computed in another way than the outputs that were kept of them: set keep_outputs: false."
            )
        numbers = [row.number for row in seen.rows if row.group == OWN]
        return teacher.outputs.of(numbers, seen.states.device)[STATES], self._head or head_of(seen.head)


@contextmanager
def exchanged(kept: Sequence[tuple[Parameter, Tensor]]) -> Iterator[None]:
    """The model with other weights within the block. Only their storage is exchanged, so nothing is copied, and what
    a forward pass before it has left for its backward pass stays as it is."""
    own = [weight.data for weight, _ in kept]
    try:
        for weight, value in kept:
            weight.data = value
        yield
    finally:
        for (weight, _), value in zip(kept, own, strict=True):
            weight.data = value
