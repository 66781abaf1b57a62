"""What all processes of a launch do together: train a phase, complete prompts.

Each is a function of an order and of what only the first process has (`everlearn.crew`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.crew import crew
from everlearn.progress import LineProgress, Progress
from everlearn.recipe import ModelConfig

if TYPE_CHECKING:
    from everlearn.generation.protocol import Completion, GenerationProgress, Sampling
    from everlearn.models.loading import LoadedModel
    from everlearn.runs.models_at_hand import ModelsAtHand

    Own = tuple[LoadedModel, GenerationProgress | None, Callable[[], LoadedModel]]
    """Of one process: the model that completes, where to show it, and what gives the base beside it."""

_served: list[ModelsAtHand] = []  # the one that this process has loaded to complete prompts


@dataclass(frozen=True)
class Training:
    """An order of `train`.

    Attributes:
        model: Which base and how it is tuned.
        folder: Receives history, summary, checkpoints and weights.
        load: Further arguments of `load_model`.
        stage: Those of `train_stage` beside the model, the folder and the display.
        save: Further arguments of `save_checkpoint`.
    """

    model: ModelConfig
    folder: Path
    load: Mapping[str, Any]
    stage: Mapping[str, Any]
    save: Mapping[str, Any]


def train(order: Training, progress: Progress | None) -> LoadedModel:
    """Trains a model; the first process, which has the display, writes it and hands it on."""
    from everlearn.models import loading
    from everlearn.training.stage import train_stage

    _served.clear()
    loaded = loading.load_model(order.model, trainable=True, **order.load)
    train_stage(loaded, **order.stage, folder=order.folder, progress=progress or LineProgress())
    if progress is not None:
        loaded = loading.save_checkpoint(loaded, order.folder, **order.save)
    return loaded


@dataclass(frozen=True)
class Completing:
    """An order of `complete`.

    Attributes:
        model: Which base and how it is tuned.
        state: Arguments of `ModelsAtHand.point_to` that name the model.
        is_base: Whether the base completes, not the model beside it.
        prompts: Token ids.
        sampling: How to decode.
    """

    model: ModelConfig
    state: Mapping[str, Any]
    is_base: bool
    prompts: Sequence[Sequence[int]]
    sampling: Sampling


def complete(order: Completing, own: Own | None) -> list[list[Completion]]:
    """Completes prompts, each in one of the processes."""
    from everlearn.generation.engine import make_generator

    loaded, progress, base = own or _model_of(order)
    return make_generator(loaded, crew(), base).generate(order.prompts, order.sampling, progress)


def _model_of(order: Completing) -> Own:
    """The model of an order, kept for the next one."""
    from everlearn.runs.models_at_hand import ModelsAtHand

    if not _served or _served[0].config != order.model:
        _served[:] = [ModelsAtHand(order.model)]
    models = _served[0]
    models.point_to(**order.state)
    return models.base() if order.is_base else models.latest(), None, models.base_beside
