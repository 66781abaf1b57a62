"""Several models that a run hands back, and which of them answers what: folders beside the final model, and a file.

    routing.json   {"method", "models": {name: folder}, "rule": {...}}
    routed/NAME/   an adapter that PEFT loads, or a whole model that Transformers loads

The rule is that of the method's answerer; measuring the folder routes as the run did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from everlearn.artifacts import is_below
from everlearn.checking import checked
from everlearn.errors import ModelError, RecipeError, RunError
from everlearn.evaluation.answering import Answerer
from everlearn.files import read_mapping
from everlearn.methods.registry import method_class
from everlearn.models.state import Kind, ModelState, Part
from everlearn.ordinary_files import is_folder, is_regular
from everlearn.recipe import Section
from everlearn.runs.checkpoint import checkpoint_fingerprint

ROUTING = "routing.json"
ROUTED = "routed"


class Routing(Section):
    """What stands in the file."""

    method: str
    """Whose answerer reads the rule."""
    models: Annotated[dict[str, str], Field(min_length=1)]
    """Name to the folder, below that of the file."""
    rule: dict[str, object]
    """Values of the answerer."""


def described(answerer: Answerer, method: str) -> Routing:
    """The file's content; each model's folder is `routed/NAME`."""
    models = {name: f"{ROUTED}/{name}" for name in answerer.models}
    return Routing(method=method, models=models, rule=answerer.rule.model_dump(mode="json"))


def answerer_in(folder: Path, kind: Kind) -> Answerer | None:
    """What routes to the models of a folder; None where there is but one.

    Args:
        folder: What a run has handed back.
        kind: Of its models.

    Raises:
        RunError: the file is not what a run has written.
        ModelError: a model is not there.
    """
    path = folder / ROUTING
    if not is_regular(path, ModelError):
        return None
    remedy = "put the run's own file back, or delete it to measure the folder's main model alone"
    try:
        values = checked(Routing, read_mapping(path), where="routing")
        made_by = method_class(values.method).Answerer
        if made_by is Answerer:
            raise RecipeError(f"the method {values.method} chooses among no models.")
        rule = checked(made_by.Rule, values.rule, where="rule")
    except RecipeError as error:
        raise RunError(f"{path}: {str(error).removesuffix('.')}: {remedy}.") from None
    models = {}
    for name, place in values.models.items():
        if not is_below(place) or not is_folder(folder / place, ModelError):
            raise ModelError(f"{path}: there is no model {name!r} in {place!r} below its folder: {remedy}.")
        models[name] = ModelState(checkpoint_fingerprint(folder / place), (Part(folder / place, kind),))
    answerer = made_by(rule, models)
    if unknown := [name for name in answerer.named() if name not in models]:
        raise RunError(f"{path}: its rule names {unknown[0]!r}, which is none of its models: {remedy}.")
    return answerer
