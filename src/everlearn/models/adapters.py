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
    """Path to module of every linear layer but the output head (GPT-2's Conv1D counts as linear).

    Of a model that also sees or hears, those of its language model.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    of_language = set(model.get_decoder().modules())
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Linear | Conv1D) and module is not head and module in of_language
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
        if not any(_is_named(path, target) for path in paths):
            guess = nearest(target, names)
            hint = f", perhaps {guess!r}" if guess else ""
            raise ModelError(
                f"model.lora.targets: this {model.config.model_type} model has no linear layer {target!r}: use some "
                f"of {', '.join(names)}{hint}, or 'all-linear'."
            )
    if not config.targets:
        raise ModelError(f"model.lora.targets is empty: use some of {', '.join(names)}, or 'all-linear'.")


def attach_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int, revision: str | None = None) -> PeftModel:
    """Puts a fresh trainable adapter on the model; its first matrices depend on `seed` alone.

    Args:
        model: Gets the adapter in place.
        config: Its shape.
        seed: Of the matrices.
        revision: The base model's commit on the hub, which the saved adapter names.

    Raises:
        ModelError: the model lacks the targets, or cannot have such an adapter on them.
    """
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
        target_modules=_targets(model, config),
        revision=revision,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(devices=[]), _without_future_warnings():
        torch.default_generator.manual_seed(seed)
        try:
            return get_peft_model(model, settings)
        except (ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"model.lora: this {model.config.model_type} model cannot have such an adapter ({reason}): name other "
                "model.lora.targets, or set model.lora.dropout to 0 if it is at fault."
            ) from None


def _targets(model: PreTrainedModel, config: LoraConfig) -> list[str] | str:
    """As the recipe names them, or whole paths where a model has linear layers outside its language model as well."""
    from torch.nn import Linear

    paths = linear_modules(model)
    head = model.get_output_embeddings()
    if not any(isinstance(m, Linear) and m is not head and path not in paths for path, m in model.named_modules()):
        return config.targets
    if config.targets == "all-linear":
        return list(paths)
    return [path for path in paths if any(_is_named(path, target) for target in config.targets)]


def _is_named(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


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
            device = str(model.device)  # left out: any GPU of the machine, whatever the recipe says
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, torch_device=device)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"the adapter in {folder} does not fit this base model or is damaged ({reason}): use the base that it was "
            "trained on, or delete it and run 'everlearn resume'."
        ) from None


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes weights and settings, the same bytes in every process."""
    for settings in model.peft_config.values():
        if isinstance(settings.target_modules, set):  # PEFT would write it in the order of its hashes
            settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(str(folder), save_embedding_layers=False)


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
