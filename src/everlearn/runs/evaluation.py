"""Scoring one model state outside a run: the base, or a checkpoint of any run of the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everlearn.files import held, read_mapping
from everlearn.layout import BASE_STAGE
from everlearn.progress import Progress
from everlearn.recipe import Recipe, cache_folder
from everlearn.run_folder import EVALUATION, refuse_other
from everlearn.runs.checkpoint import checkpoint_fingerprint
from everlearn.runs.loop import prepare, tell_about
from everlearn.runs.measure import Measurement
from everlearn.runs.models_at_hand import ModelsAtHand
from everlearn.store import RunStore


def folder_of(recipe: Recipe) -> Path:
    """Where `everlearn evaluate` puts predictions and scores."""
    return Path(recipe.runs_dir) / f"{recipe.name}-evaluation"


def evaluate_checkpoint(recipe: Recipe, checkpoint: Path | None, folder: Path, progress: Progress) -> dict[str, Any]:
    """Scores a model on all tasks of the recipe and in general.

    Args:
        recipe: Names the base, the tasks and how to measure.
        checkpoint: A stage's `training` folder, or a folder with `adapter/` or `model/`; None for the base.
        folder: Where predictions and scores go.
        progress: Where to show what goes on.

    Raises:
        ModelError: the checkpoint folder holds no weights.
    """
    refuse_other(folder, EVALUATION)
    prepared = prepare(recipe, folder)
    tell_about(prepared.stream, progress)
    store = RunStore(folder, cache_folder(recipe.runs_dir, recipe.cache_dir))
    models = ModelsAtHand(recipe.model)
    name, fingerprint = BASE_STAGE, prepared.base_fingerprint
    if checkpoint is not None:
        models.point_to(checkpoint)
        fingerprint = checkpoint_fingerprint(checkpoint)
        name = f"checkpoint-{fingerprint[:8]}"
    with held(store.folder):
        store.update_manifest(kind=EVALUATION)
        measurement = Measurement(
            recipe, prepared.stream, [], prepared.template, store, progress, models.generator_for
        )
        measurement.stage(name, 0, models.latest, fingerprint, prepared.stream.tasks)
        return read_mapping(folder / "stages" / name / "scores.json")
