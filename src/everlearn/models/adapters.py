"""Low-rank adapters through PEFT's public API: which modules they sit on, making, loading and switching them off.

The defaults are SSR's (arXiv 2403.01244; published scripts: rank 8, alpha 32, dropout 0.1 on q_proj and v_proj).
One adapter is carried on through all stages: the last stage's matrices are loaded trainable, nothing is merged.
Adapter matrices are float32 whatever the base is. Target names that the model does not have are refused, even
when others are found.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import ModelError, nearest

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.nn import Module
    from transformers import PreTrainedModel

    from everlearn.recipe import LoraConfig


def linear_modules(model: PreTrainedModel) -> dict[str, Module]:
    """Path to module of every linear layer but the output head (GPT-2's Conv1D counts as linear)."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Linear | Conv1D) and module is not head
    }


def check_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """Refuses names in `lora.targets` that match no linear layer.

    Raises:
        ModelError: lists the model's linear layers and the nearest to the wrong name.
    """
    if config.targets == "all-linear":
        return
    paths = list(linear_modules(model))
    names = sorted({path.rpartition(".")[2] for path in paths})
    for target in config.targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            guess = nearest(target, names)
            hint = f", perhaps {guess!r}" if guess else ""
            raise ModelError(
                f"model.lora.targets: this {model.config.model_type} model has no linear layer {target!r}: use some "
                f"of {', '.join(names)}{hint}, or 'all-linear'."
            )
    if not config.targets:
        raise ModelError(f"model.lora.targets is empty: use some of {', '.join(names)}, or 'all-linear'.")


def attach_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """Puts a fresh trainable adapter on the model; its first matrices depend on `seed` alone."""
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    check_targets(model, config)
    layers = linear_modules(model).values()
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(devices=[]), _without_future_warnings():
        torch.default_generator.manual_seed(seed)
        return get_peft_model(model, settings)


def load_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Puts a stored adapter on the model.

    Raises:
        ModelError: the folder holds no adapter, or one that does not fit this model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} has no {missing[0]}: it is no adapter folder; delete it and run 'everlearn resume'."
        )
    try:
        with _without_future_warnings():
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"the adapter in {folder} does not fit this base model or is damaged ({reason}): use the base that it was "
            "trained on, or delete it and run 'everlearn resume'."
        ) from None


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """The base model's behaviour within the block; afterwards the adapter is as it was, trainable or not."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)


@contextmanager
def _without_future_warnings() -> Iterator[None]:
    """PEFT reads a setting under a name that newer releases of Transformers call old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
