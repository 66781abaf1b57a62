"""What all processes of a launch do together in a run of version updates: train a segment (see `everlearn.crew`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from everlearn.data.blocks import TokenFiles
from everlearn.devices import choose_device
from everlearn.training.checkpoint import load_moments, load_tensors, moments_of, named_tensors, save_state
from everlearn.training.engine import Row
from everlearn.training.processes import fill, here, whole
from everlearn.training.text import TextTraining
from everlearn.updates.batches import Batches
from everlearn.updates.config import UpdateRecipe
from everlearn.updates.plan import Segment
from everlearn.updates.start import initial_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Job:
    """What all segments of a run have in common.

    Attributes:
        recipe: Of the run.
        settings: Configuration of the model.
        files: Token files of the versions.
        annealing: Those of the annealing mix, if there is one.
        steps: Optimizer steps of each version.
        tokenizer: Its fingerprint.
    """

    recipe: UpdateRecipe
    settings: PretrainedConfig
    files: tuple[TokenFiles, ...]
    annealing: TokenFiles | None
    steps: tuple[int, ...]
    tokenizer: str

    def record(self, segment: Segment, finished: int, processes: int) -> dict[str, object]:
        """What a state knows of itself."""
        return {
            "segment": segment.to_json(),
            "finished": finished,
            "position": segment.start + finished,
            "tokenizer": self.tokenizer,
            "random": {"seed": self.recipe.seed, "position": segment.start + finished},
            "processes": processes,
        }


@dataclass(frozen=True)
class Training:
    """An order of `train`.

    Attributes:
        job: What the run's segments have in common.
        segment: To be trained.
        weights: File with those that it begins or goes on with; None: the initial ones.
        moments: Folder with those of the optimizer; None: it begins without any.
        done: Steps finished already.
        checkpoint: Where checkpoints go.
        state: Where the state at the end goes; None: nothing will start from it.
        keeps_moments: Whether the optimizer's moments belong to it.
    """

    job: Job
    segment: Segment
    weights: Path | None
    moments: Path | None
    done: int
    checkpoint: Path
    state: Path | None
    keeps_moments: bool


@dataclass(frozen=True)
class Trained:
    """A model at the end of a segment, and its weights, whole and on the CPU."""

    model: PreTrainedModel
    tensors: dict[str, Tensor]


class _Workplace:
    """A run's model and data in this process."""

    def __init__(self, job: Job) -> None:
        recipe = job.recipe
        self.batches = Batches(recipe, job.files, job.annealing, job.steps)
        model = initial_model(recipe.model, job.settings, recipe.seed)
        self.training = TextTraining(model, recipe.training, here(choose_device(recipe.training.device)), recipe.seed)


_workplace: list[_Workplace] = []  # of the run at hand until `forget`, so that each segment needs no model of its own


def train(order: Training, log: Callable[[list[Row]], None] | None) -> Trained | None:
    """Trains a segment; in the first process `log` receives the finished steps.

    Returns:
        The model, where the segment releases it.

    Raises:
        RunError: the loss is no longer finite, or a file cannot be read or written.
    """
    job, segment = order.job, order.segment
    if not _workplace:
        _workplace.append(_Workplace(job))
    training, batches = _workplace[0].training, _workplace[0].batches
    processes, settings = training.processes, job.recipe.training
    optimizer = training.optimizer(job.recipe.schedule.maximal_rate)
    _begin(order, training, optimizer)

    def save(place: Path, finished: int, *, keeps_moments: bool = True) -> None:
        record = job.record(segment, finished, processes.count)
        moments = moments_of(training.model, [optimizer]) if keeps_moments else None
        save_state(place, named_tensors(training.model), record, processes, moments=moments)

    share = processes.share(settings.batch_blocks)
    training.train(
        lambda step: batches.read(segment, step, share),
        [optimizer],
        schedule=segment.schedule,
        peak=job.recipe.schedule.maximal_rate,
        steps=segment.steps,
        done=order.done,
        first_position=segment.start,
        checkpoint_every=settings.checkpoint_every,
        log=log or (lambda rows: None),
        checkpoint=lambda finished: save(order.checkpoint, finished),
    )
    if order.state:
        save(order.state, segment.steps, keeps_moments=order.keeps_moments)
    if segment.releases is None:
        return None
    return Trained(training.model, {name: whole(tensor) for name, tensor in named_tensors(training.model).items()})


def forget(_: None = None, __: None = None) -> None:
    """Lets the run's model and data go."""
    _workplace.clear()


def _begin(order: Training, training: TextTraining, optimizer: torch.optim.Optimizer) -> None:
    """The weights and moments that the segment begins or goes on with."""
    job, mine = order.job, named_tensors(training.model)
    if order.weights is None:
        fresh = initial_model(job.recipe.model, job.settings, job.recipe.seed)
        for name, tensor in named_tensors(fresh).items():
            fill(mine[name], tensor)
    else:
        load_tensors(order.weights, mine)
    if order.moments is not None:
        load_moments(order.moments, training.model, [optimizer])
