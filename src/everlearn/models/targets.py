"""Which layers an adapter sits on: what `lora.targets` names, what `auto` means for a model, what cannot be.

`auto` is the published choice (arXiv 2403.01244: the query and value projections) where a model has layers of these
names. Other architectures get the names that PEFT has for them, else the linear layers of their attention, else all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from everlearn.errors import ModelError, nearest
from everlearn.ordinary_files import shown

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from everlearn.recipe import LoraConfig

PUBLISHED_TARGETS = ["q_proj", "v_proj"]
_ATTENTION = re.compile(r"(?i)(^|\.)(?!\w*norm)\w*att(n|ention)\w*(?!.*router)")


def linear_modules(model: PreTrainedModel) -> dict[str, Module]:
    """Path to module of every linear layer but the output head (GPT-2's Conv1D counts as linear).

    Of a model that also sees or hears, those of its language model.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Linear | Conv1D) and module is not head
    }
    of_language = set(model.get_decoder().modules())
    return {path: module for path, module in found.items() if module in of_language} or found


def with_targets(config: LoraConfig, model: PreTrainedModel | None) -> LoraConfig:
    """Settings with the targets that `auto` means for a model; None (no adapter is made): the published ones."""
    if config.targets != "auto":
        return config
    return config.model_copy(update={"targets": auto_targets(model) if model else PUBLISHED_TARGETS})


def auto_targets(model: PreTrainedModel) -> list[str]:
    """The names of layers that `lora.targets: auto` means for a model."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as MAPPING

    paths = list(linear_modules(model))
    kinds = (model.config.get_text_config().model_type, model.config.model_type)
    for names in (PUBLISHED_TARGETS, *(MAPPING.get(kind) for kind in kinds)):
        if isinstance(names, list) and all(any(_is_named(path, name) for path in paths) for name in names):
            return list(names)
    within = [path for path in paths if _ATTENTION.search(path.rpartition(".")[0])] or paths
    return sorted({_short(path, within, paths) for path in within})


def _short(path: str, within: list[str], paths: list[str]) -> str:
    """The last parts of a path that name no layer outside of the chosen ones; without numbers, for all layers."""
    parts = path.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[-count:])
        if all(other in within for other in paths if _is_named(other, name)):
            return name
    return path


def check_targets(model: PreTrainedModel, targets: Sequence[str] | str, key: str = "model.lora.targets") -> None:
    """Refuses names that match no linear layer.

    Args:
        model: Has the layers.
        targets: Their names; a word for several is not looked at.
        key: Where the names stand.

    Raises:
        ModelError: lists the model's linear layers and the nearest to the wrong name.
    """
    if isinstance(targets, str):
        return
    paths = list(linear_modules(model))
    names = sorted({path.rpartition(".")[2] for path in paths})
    for target in targets:
        if not any(_is_named(path, target) for path in paths):
            guess = nearest(target, names)
            hint = f", perhaps {guess!r}" if guess else ""
            raise ModelError(
                f"{key}: this {model.config.model_type} model has no linear layer {target!r}: use some "
                f"of {', '.join(names)}{hint}, or 'all-linear'."
            )
    if not targets:
        raise ModelError(f"{key} is empty: use some of {', '.join(names)}, or 'all-linear'.")


def check_rank(model: PreTrainedModel, config: LoraConfig) -> None:
    """Refuses a rank that none of the layers can have: an update has at most as many as its layer is wide.

    Raises:
        ModelError: names the largest rank.
    """
    layers = named_modules(model, config.targets)
    chosen = {path: _narrowest(layer) for path, layer in layers.items()}
    widest = max(chosen, key=lambda path: chosen[path])
    if config.rank > chosen[widest]:
        raise ModelError(
            f"model.lora.rank {shown(str(config.rank))} is more than the layers of this {model.config.model_type} "
            f"model can have: give at most {chosen[widest]} (that of {widest})."
        )


def _narrowest(layer: Any) -> int:
    """The smaller side of a linear layer, whose weights may be quantized and of another shape."""
    sides = (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else layer.weight.shape
    return int(min(sides))


def peft_targets(model: PreTrainedModel, config: LoraConfig) -> list[str] | str:
    """As the recipe names them, or whole paths where a model has linear layers outside its language model as well."""
    from torch.nn import Linear

    paths = linear_modules(model)
    head = model.get_output_embeddings()
    if not any(isinstance(m, Linear) and m is not head and path not in paths for path, m in model.named_modules()):
        return config.targets
    return list(named_modules(model, config.targets))


def named_modules(model: PreTrainedModel, targets: Sequence[str] | str) -> dict[str, Module]:
    """Path to module of the linear layers that are named, or all (`all-linear`)."""
    layers = linear_modules(model)
    if targets == "all-linear":
        return layers
    return {path: layer for path, layer in layers.items() if any(_is_named(path, target) for target in targets)}


def _is_named(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")
