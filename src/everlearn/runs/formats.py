"""Number formats of a run: what `auto` means is decided once, where the run begins, and holds for all that follows.

So is whether training recomputes activations (`training.gradient_checkpointing`), by the memory that is free there.

Results depend on the formats, so fingerprints hash what they are and never `auto`, and the manifest records them: a
run that goes on or grows on another kind of machine is computed there as it was begun, and nothing that stands is
made again. Runs of earlier releases have no record. Their steps go on being hashed as written, so that they are found,
and `auto` means for what is new what the machine at hand makes of it, as it did then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from everlearn.devices import autocast_format, check_float16, choose_device, needs_float16
from everlearn.errors import ModelError
from everlearn.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from everlearn.recipe import Recipe

RECORD = "formats"
"""Key of the manifest."""
RECOMPUTES = "gradient_checkpointing"
"""Key within it, and of the recipe's `training`; runs that have begun before there was an `auto` do not."""
Format = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Formats:
    """What a run computes in.

    Attributes:
        dtype: Of the loaded weights.
        precision: Of the computation of a training step.
        notes: What the user should know of them.
        are_recorded: Whether they are hashed; else the recipe's words are.
        recomputes: Whether training recomputes activations.
        quantization: Of the frozen layers, which is no choice of the machine's.
    """

    dtype: Format
    precision: Format
    notes: tuple[str, ...] = ()
    are_recorded: bool = True
    recomputes: bool = False
    quantization: str = "none"

    def to_json(self) -> dict[str, object]:
        """For the manifest; nothing where the run goes on without a record."""
        if not self.are_recorded:
            return {}
        return {RECORD: {"dtype": self.dtype, "precision": self.precision, RECOMPUTES: self.recomputes}}

    def resolved(self, recipe: Recipe) -> Recipe:
        """The recipe with these in the place of `auto`."""
        model = recipe.model.model_copy(update={"dtype": self.dtype})
        training = recipe.training.model_copy(update={"precision": self.precision, RECOMPUTES: self.recomputes})
        return recipe.model_copy(update={"model": model, "training": training})

    def identify(self, weights: str) -> str:
        """Fingerprint of a checkpoint whose files, of that fingerprint, are loaded in the format."""
        kinds: list[str] = [self.dtype] if self.dtype != "float32" and self.are_recorded else []
        kinds += [self.quantization] if self.quantization != "none" else []
        return fingerprint_of(weights, *kinds) if kinds else weights


def formats_of(recipe: Recipe, manifest: Mapping[str, object], context: int | None = None) -> Formats:
    """The formats of a run, or of one that begins here.

    Args:
        recipe: The run's, as written, with the layers that get adapters by their names.
        manifest: The run's; empty before it has begun.
        context: Most tokens that the model takes in; None: nothing is trained.

    Raises:
        ModelError: the machine cannot compute in the format that the run was begun in.
    """
    found = _number_formats(recipe, manifest)
    found = replace(found, quantization=recipe.model.quantization)
    asked, known = recipe.training.gradient_checkpointing, manifest.get(RECORD)
    if asked != "auto":
        return replace(found, recomputes=asked)
    if manifest.get("steps") or isinstance(known, Mapping):
        return replace(found, recomputes=isinstance(known, Mapping) and known.get(RECOMPUTES) is True)
    if context is None:
        return found
    from everlearn.training.memory import should_recompute

    item_bytes = 4 if "float32" == found.precision == found.dtype else 2
    recomputes, fitting = should_recompute(recipe.model, recipe.training, item_bytes, context)
    told = (
        "training recomputes activations, which is slower (training.gradient_checkpointing: auto): only about "
        f"{fitting:,} tokens would fit into the free memory without, and a row may have more."
    )
    return replace(found, recomputes=recomputes, notes=(*found.notes, *([told] if recomputes else [])))


def _number_formats(recipe: Recipe, manifest: Mapping[str, object]) -> Formats:
    here = _of_machine(recipe)
    known = manifest.get(RECORD)
    is_open = "auto" in (recipe.model.dtype, recipe.training.precision)
    if known is None and manifest.get("steps"):
        told = (
            "an earlier everlearn began this run and did not record what auto (model.dtype, training.precision) "
            f"meant: what stands is used as it is, and what is new is computed in {_said(here)}."
        )
        return Formats(here.dtype, here.precision, (told,) if is_open else (), are_recorded=False)
    if not isinstance(known, Mapping) and is_open and "float16" in (here.dtype, here.precision):
        told = f"this GPU has no bfloat16: {_said(here)}, the loss scaled (model.dtype, training.precision: auto)."
        return replace(here, notes=(told,))
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
    return Formats(kept.dtype, kept.precision, (told,))


def _of_machine(recipe: Recipe) -> Formats:
    from everlearn.models.loading import dtype_of

    device, asked = choose_device(recipe.model.device), recipe.training.precision
    for key, value in (("model.dtype", recipe.model.dtype), ("training.precision", asked)):
        if value == "float16":
            check_float16(key, device)
    if asked == "auto":
        asked = "float16" if needs_float16(device) else asked
    precision = str(autocast_format(asked, device) or "float32").removeprefix("torch.")
    return Formats(cast(Format, dtype_of(recipe.model)), cast(Format, precision))


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
