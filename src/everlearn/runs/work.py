"""What all processes of a launch do together: train a phase, or compute with a trained model, each a share.

Each is a function of an order and of what only the first process has (`everlearn.crew`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.crew import Crew, crew
from everlearn.errors import UserError
from everlearn.progress import LineProgress, Progress
from everlearn.recipe import ModelConfig

if TYPE_CHECKING:
    from everlearn.generation.protocol import Completion, GenerationProgress, Sampling
    from everlearn.models.loading import LoadedModel, Work
    from everlearn.runs.models_at_hand import ModelsAtHand

_served: list[ModelsAtHand] = []  # the one that this process has loaded to compute with


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


def train(order: Training, progress: Progress | None) -> LoadedModel | None:
    """Trains a model; the first process, which has the display, writes it and hands it on whole."""
    from everlearn.models import loading
    from everlearn.training.checkpoint import gathered, moving_tensors
    from everlearn.training.processes import here
    from everlearn.training.stage import train_stage

    _served.clear()
    loaded = loading.load_model(order.model, trainable=True, **order.load)
    _refuse_other_weights(crew().gather(loaded.fingerprint))
    train_stage(loaded, **order.stage, folder=order.folder, progress=progress or LineProgress())
    if order.stage["config"].sharding == "fsdp":
        trained = gathered(moving_tensors(loaded.model), here(loaded.device))
        del loaded
        if progress is None:
            return None
        loaded = loading.load_model(order.model, trainable=True, **order.load)  # its weights whole again
        for name, weight in moving_tensors(loaded.model).items():
            weight.copy_(trained[name])
    if progress is not None:
        loaded = loading.save_checkpoint(loaded, order.folder, **order.save)
    return loaded


def _refuse_other_weights(fingerprints: Sequence[str]) -> None:
    """Refuses to train what is not one model.

    Raises:
        UserError: a process has loaded another one than the first.
    """
    strange = [rank for rank, one in enumerate(fingerprints) if one != fingerprints[0]]
    if strange:
        raise UserError(
            f"process {strange[0]} of the launch has loaded other weights than the first one: on every machine the "
            "model and the run folder must be the same (a shared file system, or the same revision of the model)."
        )


@dataclass(frozen=True)
class OnModel:
    """An order of `on_model`.

    Attributes:
        model: Which base and how it is tuned.
        state: Arguments of `ModelsAtHand.point_to` that name the model.
        is_base: Whether it is the base, not the model beside it.
        work: What to do.
        order: What it is about.
    """

    model: ModelConfig
    state: Mapping[str, Any]
    is_base: bool
    work: Work[Any, Any]
    order: Any


def on_model(order: OnModel, own: tuple[LoadedModel, object] | None) -> object:
    """Does work with a model, which the first process has and the others load; see `LoadedModel.shared_out`."""
    loaded, show = own or (_model_of(order), None)
    return order.work(replace(loaded, everywhere=None), order.order, crew(), show)


def completions(
    loaded: LoadedModel,
    order: tuple[Sequence[Sequence[int]], Sampling],
    processes: Crew,
    own: tuple[GenerationProgress | None, Callable[[], LoadedModel]] | None,
) -> list[list[Completion]]:
    """Completes prompts, each in one of the processes; the first one has what to show by, and the base beside."""
    from everlearn.generation.engine import make_generator

    prompts, sampling = order
    progress, base = own or (None, _served[0].base_beside)
    return make_generator(loaded, processes, base).generate(prompts, sampling, progress)


def _model_of(order: OnModel) -> LoadedModel:
    """The model of an order, kept for the next one."""
    from everlearn.runs.models_at_hand import ModelsAtHand

    if not _served or _served[0].config != order.model:
        _served[:] = [ModelsAtHand(order.model)]
    models = _served[0]
    models.point_to(**order.state)
    return models.base() if order.is_base else models.latest()
