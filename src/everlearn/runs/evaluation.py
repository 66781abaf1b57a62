"""Scoring one model state outside a run: the base, or a checkpoint of any run of the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everlearn.data.words import is_of_words
from everlearn.errors import RecipeError
from everlearn.files import held, read_mapping
from everlearn.fingerprints import fingerprint_of
from everlearn.generation.engines import at_work
from everlearn.layout import BASE_STAGE
from everlearn.models.state import Kind, ModelState
from everlearn.progress import Progress
from everlearn.recipe import Recipe, cache_folder
from everlearn.run_folder import EVALUATION, refuse_other
from everlearn.runs.checkpoint import checkpoint_fingerprint, state_in
from everlearn.runs.judge import judge_answers
from everlearn.runs.measure import Measurement
from everlearn.runs.models_at_hand import ModelsAtHand
from everlearn.runs.prepare import prepare, tell_about
from everlearn.runs.routing import answerer_in
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
    models = ModelsAtHand(prepared.recipe.model, prepared.engine)
    name, released, answerer = BASE_STAGE, ModelState(prepared.base_fingerprint), None
    if checkpoint is not None:
        kind: Kind = "adapter" if recipe.model.tuning == "lora" else "model"
        answerer = answerer_in(checkpoint, kind)
        fingerprint = prepared.formats.identify(checkpoint_fingerprint(checkpoint))
        released = state_in(checkpoint, kind, fingerprint, prepared.base_fingerprint, prepared.stream)
        name = released.fingerprint
        if answerer:
            name = fingerprint_of(name, *(state.fingerprint for state in answerer.models.values()))
        name = f"checkpoint-{name[:8]}"
    if is_of_words(prepared.stream) and released.heads is None:
        raise RecipeError(
            "rows of words with tags are answered by heads, and the model that is to be measured has none: name the "
            "'model' folder of a run that has trained some."
        )
    with held(store.folder), at_work(prepared.engine, progress):
        store.update_manifest(kind=EVALUATION, **prepared.formats.to_json())
        tokenizer = prepared.facts.tokenizer
        measurement = Measurement(
            prepared.recipe, prepared.stream, [], prepared.template, store, progress, models, tokenizer
        )
        measurement.stage(name, 0, released, prepared.stream.tasks, answerer)
        step = store.steps_below(name)
        judge_answers(prepared.recipe, prepared.stream.tasks, measurement.answers(0), step, progress)
        scores = read_mapping(folder / "stages" / name / "scores.json")
        if recipe.evaluation.judge:
            scores["judge"] = read_mapping(folder / "stages" / name / "judge" / "scores.json")
        return scores
