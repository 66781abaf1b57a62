"""The models that a stage needs, loaded when first asked for and never twice.

Most steps of a resumed or compared run find their artifact and need no model at all, so nothing is loaded until a
step calls. With LoRA, the base model is the latest one with its adapter switched off: one copy of the weights
serves both, and never are there two, also where a stage's model was found and not trained just now. With full
tuning, both are kept if they are small; otherwise one makes room for the other, since loading takes seconds and
memory is what large models lack. `base()` and `latest()` therefore exclude each other: asking for one ends the use
of the other. Only a mixture of the two under full tuning holds both, whatever their size.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.crew import Crew, crew
from everlearn.errors import ModelError
from everlearn.models import loading
from everlearn.recipe import ModelConfig

if TYPE_CHECKING:
    from everlearn.generation.engines import Elsewhere
    from everlearn.generation.protocol import Completion, GenerationProgress, Generator, Sampling
    from everlearn.models.loading import LoadedModel, Work
    from everlearn.models.state import ModelState, Part


LARGE = 1 << 26
"""Bytes of weights from which on models make room for each other, and memory is freed at once (collecting takes about
0.2 seconds, thrice a stage)."""


class ModelsAtHand:
    """Keeps the model of the latest finished stage and, for full tuning of a small model, the base beside it.

    Args:
        config: Which base and how it is tuned.
        engine: What writes; None: this process.
    """

    def __init__(self, config: ModelConfig, engine: Elsewhere | None = None) -> None:
        self.config = config
        self._engine = engine
        self._checkpoint: Path | None = None
        self._beside: tuple[Part, ...] = ()
        self._latest: LoadedModel | None = None
        self._base: LoadedModel | None = None
        self._base_view = ExitStack()

    @property
    def written_by(self) -> Mapping[str, object]:
        """What belongs to the inputs of every step in which a model writes: nothing where this process does."""
        return {} if self._engine is None else self._engine.inputs

    def point_to(
        self, checkpoint: Path | None, loaded: LoadedModel | None = None, *, beside: tuple[Part, ...] = ()
    ) -> None:
        """Names the checkpoint folder that `latest` means from now on (None: the base).

        Args:
            checkpoint: Artifact folder of a finished training step.
            loaded: Its model, when it is in memory already.
            beside: Further parts of the model.
        """
        self._base_view.close()
        if loaded is None and (checkpoint, beside) == (self._checkpoint, self._beside):
            return
        self._checkpoint, self._beside = checkpoint, beside
        self._hold(loaded and self._shared(loaded), self._base)

    def open(self, state: ModelState) -> LoadedModel:
        """Makes a state the model at hand, and loads it."""
        self.point_to(state.folder, beside=state.beside)
        return self.latest()

    def release(self) -> None:
        """Frees the memory of all models, as before loading one for training."""
        if self._engine is not None:
            self._engine.rest()
        self._base_view.close()
        self._hold(None, None)

    def latest(self) -> LoadedModel:
        """The model of the latest checkpoint."""
        self._base_view.close()
        if self._is_base():
            return self._plain_base()
        if self._latest is None:
            if self.config.tuning == "lora" or _weight_bytes(self._base) >= LARGE:
                self._hold(None, None)  # an adapter's model to come holds the base
            loaded = loading.load_model(self.config, checkpoint=self._checkpoint, beside=self._beside)
            self._latest = self._shared(loaded)
        return self._latest

    def base(self) -> LoadedModel:
        """The base model theta(0)."""
        if self.config.tuning == "lora" and not self._is_base():
            return self._shared(self._base_view.enter_context(loading.base_of(self.latest())), is_base=True)
        return self._plain_base()

    def base_beside(self) -> LoadedModel:
        """The base model beside the latest fully tuned one, for what computes with both."""
        if self._base is None:
            self._base = self._shared(loading.load_model(self.config), is_base=True)
        return self._base

    def _is_base(self) -> bool:
        return self._checkpoint is None and not self._beside

    def generator_for(self, loaded: LoadedModel) -> Generator:
        """The generation engine over one of these models; with several processes, all of them complete.

        Raises:
            ModelError: the engine is elsewhere, and the model is not the base with one adapter.
        """
        from everlearn.generation.engine import make_generator

        if self._engine is not None:
            return self._engine.generator(loaded, self._adapter_of(loaded))
        if loaded.everywhere is not None:
            return _OfAll(self, loaded)
        return make_generator(loaded, base=self.base_beside)

    def _adapter_of(self, loaded: LoadedModel) -> Path | None:
        """The folder of what makes this model of the base; None: it is the base."""
        from everlearn.generation.engines import refuse_unserved

        if loaded is not self._latest:
            return None
        refuse_unserved(self.config)
        if self._checkpoint is None or self._beside:
            raise ModelError(
                "several adapters that compute together are nothing that a server loads: set generation.engine to "
                "here."
            )
        return loading.weights_in(self._checkpoint, self.config)

    def _shared(self, loaded: LoadedModel, *, is_base: bool = False) -> LoadedModel:
        """The model as one that other processes can load too, where there are any, and of the engine's context."""
        if self._engine is not None and self._engine.context < loaded.context_length:
            loaded = replace(loaded, context_length=self._engine.context, own_context=loaded.context_length)
        if crew().count == 1:
            return loaded

        def state() -> dict[str, Any]:
            return {"checkpoint": self._checkpoint, "beside": self._beside}

        made = state()

        def everywhere(work: Work[Any, Any], order: object, show: object) -> object:
            at_hand = state() if is_base else made  # else the others would make room for a base that they hold
            return crew().together(on_model, OnModel(self.config, at_hand, is_base, work, order), (shared, show))

        shared = replace(loaded, everywhere=everywhere)
        return shared

    def _hold(self, latest: LoadedModel | None, base: LoadedModel | None) -> None:
        """Keeps these and frees what was before: a Trainer's cycles hold models and optimizers until collected."""
        weights = sum(_weight_bytes(held) for held in (self._latest, self._base, latest))
        self._latest, self._base = latest, base
        if weights >= LARGE:
            gc.collect()

    def _plain_base(self) -> LoadedModel:
        if self._base is None:
            if _weight_bytes(self._latest) >= LARGE:
                self._hold(None, None)
            self._base = self._shared(loading.load_model(self.config), is_base=True)
        return self._base


def _weight_bytes(loaded: LoadedModel | None) -> int:
    return 0 if loaded is None else sum(weight.numel() * weight.element_size() for weight in loaded.model.parameters())


class _OfAll:
    """The generation engine of all processes over a model."""

    def __init__(self, models: ModelsAtHand, loaded: LoadedModel) -> None:
        self._models, self._loaded = models, loaded

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: GenerationProgress | None = None
    ) -> list[list[Completion]]:
        """Completes every prompt; see `Generator.generate`."""
        return self._loaded.shared_out(completions, (prompts, sampling), (progress, self._models.base_beside))


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
    if not _served or _served[0].config != order.model:
        _served[:] = [ModelsAtHand(order.model)]
    models = _served[0]
    models.point_to(**order.state)
    return models.base() if order.is_base else models.latest()


def forget_served() -> None:
    """Lets the model go that this process has loaded for the first one's orders."""
    _served.clear()


_served: list[ModelsAtHand] = []  # the one that this process has loaded to compute with
