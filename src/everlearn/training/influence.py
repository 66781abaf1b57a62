"""What a method adds to one phase of training: terms of the loss, changed gradients, averages of the weights.

An influence is made for one phase, before the model is loaded, and dies with it, tensors and all. The engine calls
its moments in the order of this file; every default does nothing. `term` and `penalty` may be called twice for the
same rows (when memory ran out) and must change nothing. Only the engine calls backward, clips, steps and
accumulates. With several processes each sees its own rows; what is divided by `units` is a sum over all of them.
In all else an influence must act alike in each: what it draws comes from the seed it is given, and it travels to them
before `begin`, so its class is one of a module and it holds no function made within another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    from torch import Tensor, device
    from torch.nn import Module, Parameter

    from everlearn.training.losses import Head
    from everlearn.training.rows import EncodedRow

    View = Callable[[], AbstractContextManager[object]]
    """Another view of the model, entered for one forward pass: the adapter switched off, other weights."""
    Wanted = Callable[[EncodedRow], bool]
    Ahead = Callable[[View, Wanted], tuple[Tensor, Head | None]]


@dataclass(frozen=True)
class Training:
    """The training that an influence is about to act on.

    Attributes:
        model: In training, on its device.
        parameters: What training moves, by name.
        rows: All rows of the phase, in order.
        device: Where the model is.
        seed: Of the phase.
        steps: Optimizer steps of the whole phase.
        gradients_of: Rows to the gradient of their mean answer loss, by parameter name; the model's own gradients
            stay as they are. Not yet in `begin`, nor in `term`, which each process calls for parts of its own.
        say: Shows the user a line, once whatever the number of processes.
    """

    model: Module
    parameters: Mapping[str, Parameter]
    rows: Sequence[EncodedRow]
    device: device
    seed: int
    steps: int
    gradients_of: Callable[[Sequence[EncodedRow]], dict[str, Tensor]]
    say: Callable[[str], None] = lambda line: None

    def beside(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Stored values on the device, in the form of the parameters that they stand beside, paired by name."""
        import torch

        from everlearn.training.processes import beside

        assert set(arrays) == set(self.parameters), "the stored values belong to the parameters in training"
        return {name: beside(weight, torch.from_numpy(arrays[name])) for name, weight in self.parameters.items()}


@dataclass(frozen=True)
class Seen:
    """One part of a batch as its forward pass left it.

    Attributes:
        rows: What the part holds.
        row_of: Row (its place in `rows`) that each answer token belongs to, (answers,).
        targets: The answer tokens, (answers,).
        states: Hidden states that predict them, (answers, width); logits (answers, vocabulary) where `head` is None,
            of classes where heads are trained, (answers, classes of all heads in play).
        head: The model's output head; None where the model treats its logits in a way of its own.
        losses: Summed cross-entropy of each row's answer, detached, (rows,).
        text: Final hidden states of all tokens of the rows of raw text, the last ones too, row after row, (tokens,
            width); None where there are none.
        again: The same states once more under another view of the model, without gradient and dropout, and the head
            over them as it is under that view.
        layers: The states of all tokens of the part between the layers, the embeddings first, each (tokens, width);
            empty unless an influence reads layers.
        tokens_of: Where the tokens of each row stand among those, a beginning that it may share with other rows and
            its own; the last token of an answer, which predicts nothing, is none of them.
        layers_again: `layers` once more under another view.
        logits: Of `states`, in float32, detached, where an influence reads them and they are few enough to be held:
            the cross-entropy's, not to be changed, which spare a term a product of the head.
        ahead: Where rows of coming steps may be looked at along with these: a view that is the same in all steps, and
            which rows are wanted, to the states that predict their answers and the head; see `steadily`.
    """

    rows: tuple[EncodedRow, ...]
    row_of: Tensor
    targets: Tensor
    states: Tensor
    head: Module | None
    losses: Tensor
    text: Tensor | None
    again: Callable[[View], tuple[Tensor, Head | None]]
    layers: tuple[Tensor, ...] = ()
    tokens_of: tuple[tuple[range, range], ...] = ()
    layers_again: Callable[[View], tuple[Tensor, ...]] = lambda view: ()
    logits: Tensor | None = None
    ahead: Ahead | None = None

    def steadily(self, view: View, wanted: Wanted) -> tuple[Tensor, Head | None]:
        """As `again`, of the wanted rows alone, under a view that is the same in every step of the phase."""
        if self.ahead is not None:
            return self.ahead(view, wanted)
        states, head = self.again(view)
        return states[self.places(wanted)], head

    def tokens(self, wanted: Wanted) -> Tensor:
        """Places among all tokens of those of the wanted rows; of a shared beginning once for each row."""
        import torch

        pairs = [pair for row, pair in zip(self.rows, self.tokens_of, strict=True) if wanted(row)]
        places = [place for shared, own in pairs for place in (*shared, *own)]
        return torch.tensor(places, dtype=torch.long, device=self.row_of.device)

    def logits_at(self, places: Tensor) -> Tensor | None:
        """`logits` at some of the answer tokens, as `places` has them."""
        if self.logits is None or len(places) == len(self.logits):
            return self.logits
        return self.logits.index_select(0, places)

    def places(self, wanted: Wanted) -> Tensor:
        """The answer tokens whose row is wanted, as places in `targets`."""
        import torch

        chosen = torch.tensor([wanted(row) for row in self.rows], device=self.row_of.device)
        return chosen[self.row_of].nonzero()[:, 0]


@dataclass
class OptimizerStep:
    """One optimizer step between its backward passes and its end.

    Attributes:
        number: 0-based.
        rows: What the step holds.
        parameters: What training moves, by name.
        rate: Learning rate of the step.
        notes: Values for the history by name; looked at later, so that nothing waits for the device.
    """

    number: int
    rows: Sequence[EncodedRow]
    parameters: Mapping[str, Parameter]
    rate: float
    notes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """By parameter name; to be changed in place."""
        return {name: weight.grad for name, weight in self.parameters.items() if weight.grad is not None}

    def note(self, name: str, value: Tensor) -> None:
        """Keeps a scalar for the history; where several influences note the same, all but the first get a number."""
        taken = sum(other == name or other.startswith(f"{name} ") for other in self.notes)
        self.notes[f"{name} {taken + 1}" if taken else name] = value.detach()


class Influence:
    """Base class of what acts while a phase trains."""

    method: str = ""
    """Whose it is, for what is told of the training."""
    reads: ClassVar[bool] = False
    """Whether `term` looks at parts of batches: the forward pass then keeps what `Seen` holds."""
    reads_layers: ClassVar[bool] = False
    """Whether it looks at the states between the layers too."""
    reads_logits: bool = False
    """Whether it computes logits of answer tokens, and takes those that are there."""
    needs_whole: bool = False
    """Whether its term is no sum over rows, so that each step must be computed in one part and by one process."""

    @property
    def told_as(self) -> str:
        """Under which name its time is told."""
        return self.method or type(self).__name__

    def inputs(self) -> Mapping[str, object]:
        """All that the trained weights depend on through this influence, as JSON: part of the fingerprint."""
        return {}

    def begin(self, training: Training) -> None:
        """The model is there: tensors are paired, once."""

    def units(self, rows: Sequence[EncodedRow]) -> int:
        """What the sum of `term` is divided by, counted over the whole step (and all processes)."""
        return sum(row.answer_count for row in rows)

    def term(self, seen: Seen) -> Tensor | None:
        """A sum over what it looks at in one part of a batch; None: nothing there."""
        return None

    def after_backward(self, step: OptimizerStep) -> None:
        """Gradients of the losses: whole, unclipped, penalties not yet in; they may be changed in place."""

    def penalty(self, rows: Sequence[EncodedRow]) -> Tensor | None:
        """A scalar of the weights, once a step; `rows` tell what the step holds."""
        return None

    def after_step(self, step: OptimizerStep) -> None:
        """Weights after the optimizer's step, and the gradients as it saw them."""

    def finish(self) -> None:
        """The last word on the weights before they are saved."""

    def left(self) -> Mapping[str, Tensor]:
        """What the phase leaves for the method, which finds it in `after_stage` (`training.checkpoint.left_by`)."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """What every checkpoint within the phase carries."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave."""
