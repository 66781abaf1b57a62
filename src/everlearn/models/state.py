"""A model by reference: a base and its parts, each a folder, and how they are tuned. Nothing is loaded until opened.

The base is that of the recipe. A part is an adapter, or whole weights that stand in place of the base's, or the
classification heads over it, by which such a model answers. A part is active (it computes along) or a shadow (its
weights are at hand, no more). How a part is called within the model is its name: the one that tuning moves as a rule
is `MOVING`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

MOVING = "default"
"""Name of the part that is carried on from stage to stage: PEFT's own for an adapter that has none."""
MOMENTS = "optimizer.safetensors"
"""Beside a part: the optimizer's moments, where a phase has kept them."""

HEADS = "heads"
"""Name of the part that holds classification heads, and of their folder."""

Kind = Literal["adapter", "model", "heads"]
HeadKind = Literal["linear", "cosine", "prototype"]
After = Literal["keep", "concatenate", "merge"]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model.

    Attributes:
        folder: Holds `adapter/`, `model/` or `heads/`, as the kind says, or (not of heads) is that inner folder.
        kind: A low-rank adapter, or all weights, or classification heads.
        name: Unique within its model; letters, digits and `_`.
        is_active: Whether it computes along; else a shadow.
    """

    folder: Path
    kind: Kind
    name: str = MOVING
    is_active: bool = True


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model by reference.

    Attributes:
        fingerprint: Hash of all that the model depends on.
        parts: What there is beside the base; none: the base itself.
        made_of: The models that its weights were trained or merged from, where that is known.
        beneath: Of a model with heads: fingerprint of the model beneath them.
    """

    fingerprint: str
    parts: tuple[Part, ...] = ()
    made_of: tuple[ModelState, ...] = field(default=(), compare=False, repr=False)
    beneath: str = field(default="", repr=False)

    @property
    def folder(self) -> Path | None:
        """Where the part that is carried on stands; None: there is none."""
        return next((part.folder for part in self.parts if part.name == MOVING), None)

    @property
    def beside(self) -> tuple[Part, ...]:
        """The other parts of the language model."""
        return tuple(part for part in self.parts if part.name != MOVING and part.kind != HEADS)

    @property
    def heads(self) -> Part | None:
        """The classification heads; None: there are none."""
        return next((part for part in self.parts if part.kind == HEADS), None)

    @property
    def backbone(self) -> ModelState:
        """The language model without heads; the same as long as nothing but heads was trained."""
        if self.heads is None:
            return self
        return ModelState(self.beneath, tuple(part for part in self.parts if part.kind != HEADS), self.made_of)

    def as_part(self, name: str, *, is_active: bool = True) -> tuple[Part, ...]:
        """The part that is carried on under another name, for a model of several parts; nothing of a base."""
        carried = [part for part in self.parts if part.name == MOVING]
        return tuple(replace(part, name=name, is_active=is_active) for part in carried)


@dataclass(frozen=True, slots=True)
class PartSettings:
    """What a part is that a phase adds to its start (`everlearn.models.kinds`).

    Attributes:
        kind: PEFT's name of a kind, such as `PROMPT_TUNING`, or one of ours.
        options: Of PEFT's configuration of this kind, beyond what it takes from the model.
    """

    kind: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a phase starts from, which parts move, and what becomes of them.

    Attributes:
        start: Any model state: an earlier stage's, the base, a merge. Its parts are carried along frozen unless they
            move.
        moves: Part to the factor of its learning rate; a part that the start does not have is new, of the shape that
            the recipe gives to adapters, unless it is one of `adds`.
        adds: New parts of another kind, by name.
        after: `keep` saves the part that moves, which must be the only one that is active; `concatenate` saves all
            active adapters as one, which computes their sum; `merge` computes the parts into the weights that they
            sit on and saves those, so that the start must be whole weights.
    """

    start: ModelState
    moves: Mapping[str, float] = field(default_factory=lambda: {MOVING: 1.0})
    adds: Mapping[str, PartSettings] = field(default_factory=dict)
    after: After = "keep"

    def describe(self) -> dict[str, object] | None:
        """What the trained weights depend on beyond the start's fingerprint, as JSON; None where that is all."""
        if (
            dict(self.moves) == {MOVING: 1.0}
            and self.after == "keep"
            and not self.adds
            and {MOVING} >= {p.name for p in self.start.parts}
        ):
            return None
        parts = [[part.name, part.kind, part.is_active] for part in self.start.parts]
        described: dict[str, object] = {"parts": parts, "moves": dict(self.moves), "after": self.after}
        if self.adds:
            described["adds"] = {name: [one.kind, dict(one.options)] for name, one in self.adds.items()}
        return described
