"""Number formats of a run: what `auto` means is decided once, where the run begins, and holds for all that follows.

Results depend on the formats, so fingerprints hash what they are and never `auto`, and the manifest records them: a
run that goes on or grows on another kind of machine is computed there as it was begun, and nothing that stands is
made again. Runs of earlier releases have no record. Their steps go on being hashed as written, so that they are found,
and `auto` means for what is new what the machine at hand makes of it, as it did then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from everlearn.devices import autocast_format, choose_device
from everlearn.errors import ModelError
from everlearn.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from everlearn.recipe import Recipe

RECORD = "formats"
"""Key of the manifest."""
Format = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Formats:
    """What a run computes in.

    Attributes:
        dtype: Of the loaded weights.
        precision: Of the computation of a training step.
        note: What the user should know of them.
        are_recorded: Whether they are hashed; else the recipe's words are.
    """

    dtype: Format
    precision: Format
    note: str | None = None
    are_recorded: bool = True

    def to_json(self) -> dict[str, object]:
        """For the manifest; nothing where the run goes on without a record."""
        return {RECORD: {"dtype": self.dtype, "precision": self.precision}} if self.are_recorded else {}

    def resolved(self, recipe: Recipe) -> Recipe:
        """The recipe with these in the place of `auto`."""
        model = recipe.model.model_copy(update={"dtype": self.dtype})
        training = recipe.training.model_copy(update={"precision": self.precision})
        return recipe.model_copy(update={"model": model, "training": training})

    def identify(self, weights: str) -> str:
        """Fingerprint of a checkpoint whose files, of that fingerprint, are loaded in the format."""
        is_plain = self.dtype == "float32" or not self.are_recorded
        return weights if is_plain else fingerprint_of(weights, self.dtype)


def formats_of(recipe: Recipe, manifest: Mapping[str, object]) -> Formats:
    """The formats of a run, or of one that begins here.

    Args:
        recipe: The run's, as written.
        manifest: The run's; empty before it has begun.

    Raises:
        ModelError: the machine cannot compute in the format that the run was begun in.
    """
    here = _of_machine(recipe)
    known = manifest.get(RECORD)
    is_open = "auto" in (recipe.model.dtype, recipe.training.precision)
    if known is None and manifest.get("steps"):
        told = (
            "an earlier everlearn began this run and did not record what auto (model.dtype, training.precision) "
            f"meant: what stands is used as it is, and what is new is computed in {_said(here)}."
        )
        return Formats(here.dtype, here.precision, told if is_open else None, are_recorded=False)
    if not isinstance(known, Mapping) or not is_open:
        return here
    begun = Formats(cast(Format, known["dtype"]), cast(Format, known["precision"]))
    kept = Formats(
        begun.dtype if recipe.model.dtype == "auto" else here.dtype,
        begun.precision if recipe.training.precision == "auto" else here.precision,
    )
    if kept == here:
        return kept
    _check(kept, recipe.model.device)
    told = f"auto goes on meaning {_said(kept)}, as where this run began (a new run would mean {_said(here)} here)"
    return Formats(kept.dtype, kept.precision, told)


def _of_machine(recipe: Recipe) -> Formats:
    from everlearn.models.loading import dtype_of

    device = choose_device(recipe.model.device)
    precision = autocast_format(recipe.training.precision, device)
    return Formats(cast(Format, dtype_of(recipe.model)), "float32" if precision is None else "bfloat16")


def _said(formats: Formats) -> str:
    return f"{formats.dtype} weights and {formats.precision} steps"


def _check(formats: Formats, name: str) -> None:
    """Refuses a device that has no such numbers (slow ones will do).

    Raises:
        ModelError: says what to do.
    """
    import torch

    device = choose_device(name)
    for one in {formats.dtype, formats.precision}:
        try:
            numbers = torch.ones(2, 2, dtype=getattr(torch, one), device=device)
            numbers @ numbers
        except (RuntimeError, TypeError):
            raise ModelError(
                f"this run was begun in {_said(formats)}, and {device} cannot compute in {one}: go on with it where "
                "that can be done, or begin anew under another --name."
            ) from None
