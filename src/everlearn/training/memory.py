"""How many tokens a training step computes at once, from the memory that is free when a stage begins, and whether
activations are recomputed, from what is free when a run does.

A layer keeps about 17 values of the model's width for each token until the backward pass has used them (Korthikanti et
al. 2022, arXiv 2205.05198: 34 bytes in 16 bits, attention scores not counted), with recomputation one. What the
optimizer will take for the moving weights is not free. The estimate is rough on purpose: a step that does not fit all
the same is computed again in halves, and what then fits is where the next stage begins.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from everlearn.devices import autocast_format, choose_device, free_bytes
from everlearn.training.processes import part_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from everlearn.models.loading import LoadedModel
    from everlearn.recipe import ModelConfig, TrainingConfig

MOST_TOKENS = {"cpu": 2048}
"""Upper limit by kind of device (more is no faster on a CPU); others: 32,768."""
SHARE = 0.5
"""Of the free memory; the rest is for attention, logits and other programs. Chosen here."""
_VALUES, _VALUES_RECOMPUTED = 17, 1
_OF_THE_OPTIMIZER = {"adamw": 3.0, "adamw_8bit": 1.5}
"""Gradient and two moments of each moving weight, in its size."""
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
        asked = likely_to_fit(
            loaded.model,
            loaded.device,
            item_bytes=computed_in(loaded, config).itemsize,
            recompute=recomputes(config),
            optimizer=config.optimizer,
        )
    return min(asked, _found.get((loaded.base_fingerprint, recomputes(config)), asked))


def computed_in(loaded: LoadedModel, config: TrainingConfig) -> torch.dtype:
    """The number format of a training step: that of autocast, or of the weights."""
    return autocast_format(config.precision, loaded.device) or next(loaded.model.parameters()).dtype


def remember(loaded: LoadedModel, config: TrainingConfig, tokens: int) -> None:
    """Has the next stages of this process begin with what was found to fit."""
    _found[loaded.base_fingerprint, recomputes(config)] = tokens


def recomputes(config: TrainingConfig) -> bool:
    """Whether activations are recomputed; not where nobody has decided what `auto` is (`runs/formats.py` does)."""
    return config.gradient_checkpointing is True


def should_recompute(model: ModelConfig, training: TrainingConfig, item_bytes: int, context: int) -> tuple[bool, int]:
    """What `training.gradient_checkpointing: auto` is here and now, before the model is loaded.

    Args:
        model: With the layers that get adapters by their names.
        training: How stages are trained.
        item_bytes: Of one value of the computation.
        context: Most tokens that the model takes in.

    Returns:
        Whether the longest row that the recipe allows is unlikely to fit without, and how many tokens are likely to.
    """
    from everlearn.crew import crew
    from everlearn.models.loading import sizes_of

    sizes, device = sizes_of(model), choose_device(model.device)
    parts = crew().count if training.sharding == "fsdp" else 1
    moving_bytes = sizes.kept_bytes  # what moves is what is kept
    weights = sizes.loaded_bytes + (moving_bytes if model.tuning == "lora" else 0)
    free = free_bytes(device) // _sharers(device)
    free -= int((weights + _OF_THE_OPTIMIZER[training.optimizer] * moving_bytes) / parts)
    fitting = _fitting(free, sizes.layers, sizes.width, item_bytes, recompute=False)
    return fitting < min(context, training.max_prompt_tokens + training.max_target_tokens), max(0, fitting)


def likely_to_fit(
    model: PreTrainedModel | PeftModel,
    device: torch.device,
    *,
    item_bytes: int,
    recompute: bool,
    optimizer: str = "adamw",
) -> int:
    """Tokens that a step is likely to find room for.

    Args:
        model: On its device, before the first step.
        device: Where it is.
        item_bytes: Of one value of the computation.
        recompute: Whether activations are computed again in the backward pass.
        optimizer: `training.optimizer`.
    """
    settings = model.config.get_text_config()
    moving = sum(part_of(weight).nbytes for weight in model.parameters() if weight.requires_grad)
    free = free_bytes(device) // _sharers(device) - int(_OF_THE_OPTIMIZER[optimizer] * moving)
    fitting = _fitting(free, settings.num_hidden_layers, settings.hidden_size, item_bytes, recompute=recompute)
    return max(_FEWEST, min(fitting, MOST_TOKENS.get(device.type, 32768)))


def _sharers(device: torch.device) -> int:
    """Processes that take from the same memory."""
    return 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _fitting(free: int, layers: int, width: int, item_bytes: int, *, recompute: bool) -> int:
    return int(free * SHARE) // (layers * width * (_VALUES_RECOMPUTED if recompute else _VALUES) * item_bytes)
