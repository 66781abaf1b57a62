"""What all processes of a launch do together to train a phase: a function of an order (`everlearn.crew`).

What they compute together with a trained model is in `models_at_hand.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.crew import crew
from everlearn.errors import UserError
from everlearn.progress import LineProgress, Progress
from everlearn.recipe import ModelConfig
from everlearn.runs.models_at_hand import forget_served

if TYPE_CHECKING:
    from everlearn.models.loading import LoadedModel


@dataclass(frozen=True)
class Training:
    """An order of `train`.

    Attributes:
        model: Which base and how it is tuned.
        folder: Receives history, summary, checkpoints and weights.
        load: Further arguments of `load_model`.
        stage: Those of `train_stage` beside the model, the folder and the display.
        save: Further arguments of `save_checkpoint`; None: the model has not moved.
    """

    model: ModelConfig
    folder: Path
    load: Mapping[str, Any]
    stage: Mapping[str, Any]
    save: Mapping[str, Any] | None


def train(order: Training, progress: Progress | None) -> LoadedModel | None:
    """Trains a model; the first process, which has the display, writes it and hands it on whole."""
    from everlearn.models import loading
    from everlearn.training.checkpoint import gathered, moving_tensors
    from everlearn.training.processes import here
    from everlearn.training.stage import train_stage

    forget_served()
    load = {"trainable": True, **order.load}
    loaded = loading.load_model(order.model, **load)
    _refuse_other_weights(crew().gather(loaded.fingerprint))
    shown = progress or LineProgress()
    if order.stage["phase"].policy is None:
        train_stage(loaded, **order.stage, folder=order.folder, progress=shown)
    else:
        from everlearn.training.policy import train_policy

        how = {key: order.stage[key] for key in ("config", "template", "seed", "what", "phase")}
        train_policy(loaded, **how, folder=order.folder, progress=shown)
    if order.stage["config"].sharding == "fsdp":
        trained = gathered(moving_tensors(loaded.model), here(loaded.device))
        del loaded
        if progress is None:
            return None
        loaded = loading.load_model(order.model, **load)  # its weights whole again
        for name, weight in moving_tensors(loaded.model).items():
            weight.copy_(trained[name])
    if progress is not None and order.save is not None:
        loaded = loading.save_checkpoint(loaded, order.folder, **order.save)
    if progress is not None and order.stage["phase"].heads is not None:
        from everlearn.models.heads import note_weights

        note_weights(order.folder, order.folder if order.save is not None else order.stage["tuning"].start.folder)
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
