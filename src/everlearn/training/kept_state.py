"""What the Trainer changes behind a caller's back, and how it is put back; seeding that queues no work."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from everlearn.training.answer_loss import inner_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from everlearn.models.loading import LoadedModel


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds the generators that this device draws from (`torch.manual_seed` would queue work for absent ones)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def state_kept(loaded: LoadedModel, *, recompute: bool) -> Iterator[None]:
    """Puts back what training sets: global random generators, log level, the model's mode and settings."""
    from transformers.utils import logging

    inner = inner_model(loaded.model)
    python, arrays = random.getstate(), np.random.get_state()
    use_cache, verbosity = getattr(inner.config, "use_cache", None), logging.get_verbosity()
    drawn_from = [inner.device] if inner.device.type == "cuda" else []  # left out: every GPU of the machine
    try:
        with torch.random.fork_rng(drawn_from):
            _recompute(inner, recompute)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        logging.set_verbosity(verbosity)
        if use_cache is not None:
            inner.config.use_cache = use_cache
        elif hasattr(inner.config, "use_cache"):  # the Trainer gives it to a configuration of several models as well
            del inner.config.use_cache
        _recompute(inner, False)
        loaded.model.zero_grad(set_to_none=True)
        loaded.model.eval()


def _recompute(model: PreTrainedModel, is_on: bool) -> None:
    """Switches the recomputation of activations in the backward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that all Transformers 5 releases have is old in some
        if is_on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        elif model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()
