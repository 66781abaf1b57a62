"""How many tokens a training step computes at once, from the memory that is free when a stage begins.

A layer keeps about 17 values of the model's width for each token until the backward pass has used them (Korthikanti et
al. 2022, arXiv 2205.05198: 34 bytes in 16 bits, attention scores not counted), with recomputation one. What the
optimizer will take for the moving weights is not free. The estimate is rough on purpose: a step that does not fit all
the same is computed again in halves, and what then fits is where the next stage begins.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from everlearn.devices import autocast_format, free_bytes
from everlearn.training.processes import part_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from everlearn.models.loading import LoadedModel
    from everlearn.recipe import TrainingConfig

MOST_TOKENS = {"cpu": 2048}
"""Upper limit by kind of device (more is no faster on a CPU); others: 32,768."""
SHARE = 0.5
"""Of the free memory; the rest is for attention, logits and other programs. Chosen here."""
_VALUES, _VALUES_RECOMPUTED = 17, 1
_OF_THE_OPTIMIZER = 3
"""Gradient and two moments of each moving weight."""
_FEWEST = 64


_found: dict[tuple[str, bool], int] = {}  # what fitted when memory had run out, by base and recomputation


def tokens_at_once(loaded: LoadedModel, config: TrainingConfig) -> int:
    """The most tokens that a step computes at once: as asked for or likely to fit, and as was found to fit before.

    Args:
        loaded: On its device, before the first step.
        config: How to train.
    """
    asked = config.micro_batch_tokens
    if asked is None:
        computed_in = autocast_format(config.precision, loaded.device) or next(loaded.model.parameters()).dtype
        asked = likely_to_fit(
            loaded.model, loaded.device, item_bytes=computed_in.itemsize, recompute=config.gradient_checkpointing
        )
    return min(asked, _found.get((loaded.base_fingerprint, config.gradient_checkpointing), asked))


def remember(loaded: LoadedModel, config: TrainingConfig, tokens: int) -> None:
    """Has the next stages of this process begin with what was found to fit."""
    _found[loaded.base_fingerprint, config.gradient_checkpointing] = tokens


def likely_to_fit(
    model: PreTrainedModel | PeftModel, device: torch.device, *, item_bytes: int, recompute: bool
) -> int:
    """Tokens that a step is likely to find room for.

    Args:
        model: On its device, before the first step.
        device: Where it is.
        item_bytes: Of one value of the computation.
        recompute: Whether activations are computed again in the backward pass.
    """
    settings = model.config.get_text_config()
    values = _VALUES_RECOMPUTED if recompute else _VALUES
    token_bytes = settings.num_hidden_layers * settings.hidden_size * values * item_bytes
    moving = sum(part_of(weight).nbytes for weight in model.parameters() if weight.requires_grad)
    sharers = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = free_bytes(device) // sharers - _OF_THE_OPTIMIZER * moving
    return max(_FEWEST, min(int(free * SHARE) // token_bytes, MOST_TOKENS.get(device.type, 32768)))
