"""Low-rank adapters through PEFT's public API: making, loading and switching them off.

The defaults are SSR's (arXiv 2403.01244; published scripts: rank 8, alpha 32, dropout 0.1 on q_proj and v_proj).
One adapter is carried on through all stages: the last stage's matrices are loaded trainable, nothing is merged.
Adapter matrices are float32 whatever the base is. Target names that the model does not have are refused, even
when others are found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import ModelError
from everlearn.models.faults import told
from everlearn.models.folders import check_tensors
from everlearn.models.json_files import read_object
from everlearn.models.state import MOVING
from everlearn.models.targets import check_rank, check_targets, linear_modules, peft_targets, with_targets
from everlearn.ordinary_files import is_regular, shown

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from everlearn.recipe import LoraConfig


_SETTINGS = {
    "peft_type", "r", "init_lora_weights", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias",
    "fan_in_fan_out", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "layers_pattern", "modules_to_save", "task_type", "inference_mode", "base_model_name_or_path", "revision",
    "peft_version", "auto_mapping",
}  # fmt: skip
"""Keys of `adapter_config.json` that say no more than what an adapter is; others must have PEFT's defaults."""


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

    config = with_targets(config, model)
    check_targets(model, config)
    check_rank(model, config)
    layers = linear_modules(model).values()
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=peft_targets(model, config),
        revision=revision,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(devices=[]), _without_future_warnings():
        torch.default_generator.manual_seed(seed)
        kind = model.config.model_type
        with told(
            f"model.lora: this {kind} model cannot have such an adapter",
            "name other model.lora.targets, or set model.lora.dropout to 0 if it is at fault",
        ):
            return get_peft_model(model, settings)


def load_adapter(
    model: PreTrainedModel | PeftModel, folder: Path, *, trainable: bool = False, name: str = MOVING
) -> PeftModel:
    """Puts a stored adapter on the model, beside those that it has.

    Args:
        model: Gets the adapter in place.
        folder: Of the adapter.
        trainable: Whether it is to be trained.
        name: How it is called within the model.

    Raises:
        ModelError: the folder holds no adapter, or one that does not fit this model.
    """
    from peft import PeftModel

    missing = [
        name
        for name in ("adapter_config.json", "adapter_model.safetensors")
        if not is_regular(folder / name, ModelError)
    ]
    if missing:
        raise ModelError(
            f"{folder} has no {missing[0]}: it is no adapter folder; delete it and run 'everlearn resume'."
        )
    what = f"the adapter in {shown(folder)}"
    check_tensors(folder, ["adapter_model.safetensors"], what, "delete it and run 'everlearn resume'")
    _check_settings(folder, what)
    remedy = "use the base that it was trained on, or delete it and run 'everlearn resume'"
    with told(f"{what} does not fit this base model or is damaged", remedy), _without_future_warnings():
        device = str(model.device)  # left out: any GPU of the machine, whatever the recipe says
        settings = {"adapter_name": name, "is_trainable": trainable, "torch_device": device}
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(folder), **settings)
        model.load_adapter(str(folder), **settings)
        return model


def activate(model: PeftModel, active: Sequence[str], moving: Collection[str]) -> None:
    """Sums these adapters, and lets these of them be trained (PEFT alone would train whatever is active)."""
    with _without_future_warnings():
        model.base_model.set_adapter(list(active))
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".{name}." in f"{path}." for name in moving))


@contextmanager
def part_view(model: PeftModel, names: Sequence[str]) -> Iterator[None]:
    """The model with these adapters alone within the block, such as a shadow; afterwards it is as it was."""
    active = model.base_model.active_adapters
    moving = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        activate(model, names, ())
        yield
    finally:
        activate(model, active, ())
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(path in moving)


def _check_settings(folder: Path, what: str) -> None:
    """Refuses an adapter that is no LoRA, or whose settings have files opened, modules imported or the base changed.

    Raises:
        ModelError: names the key.
    """
    from safetensors import safe_open

    file = folder / "adapter_config.json"
    settings = read_object(file, what)
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as tensors:
        widest = max((max(tensors.get_slice(name).get_shape(), default=0) for name in list(tensors.keys())), default=0)
    faults = {
        "peft_type": settings.get("peft_type") != "LORA",
        "r": not isinstance(rank := settings.get("r"), int) or not 1 <= rank <= widest,
        "init_lora_weights": settings.get("init_lora_weights", True) not in (True, False, "gaussian"),
        **{
            key: bool(value) for key, value in settings.items() if key not in _SETTINGS and not _is_default(key, value)
        },
    }
    for key, is_wrong in faults.items():
        if is_wrong:
            raise ModelError(
                f"{what}: {file.name}: {key} is {shown(repr(settings.get(key)))}, which no adapter has that can be "
                "used here (plain LoRA): give another one, or delete it and run 'everlearn resume'."
            )


def _is_default(key: str, value: object) -> bool:
    from peft import LoraConfig as PeftLoraConfig

    return bool(getattr(PeftLoraConfig, key, None) == value)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes weights and settings of the adapter that is carried on, the same bytes in every process."""
    for settings in model.peft_config.values():
        if isinstance(settings.target_modules, set):  # PEFT would write it in the order of its hashes
            settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(str(folder), selected_adapters=[MOVING], save_embedding_layers=False)


def save_concatenated(model: PeftModel, names: Sequence[str], folder: Path) -> None:
    """Writes the sum of adapters as one: the ranks and alphas add up, so that A and B stay as they are.

    (PEFT's own `cat` multiplies the scale into A.) It is called as a single adapter is, and everything loads it.
    """
    import copy

    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    kept = [get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False) for name in names]
    settings = [model.peft_config[name] for name in names]
    whole = copy.copy(settings[0])
    scale = whole.lora_alpha / whole.r
    assert all(math.isclose(one.lora_alpha / one.r, scale) for one in settings), "adapters of a run have one scale"
    whole.r = sum(one.r for one in settings)
    alpha = scale * whole.r
    whole.lora_alpha = round(alpha) if math.isclose(alpha, round(alpha)) else alpha
    whole.target_modules = sorted(whole.target_modules)  # PEFT would write a set in the order of its hashes
    whole.inference_mode = True
    save_file(concatenated(kept), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    whole.save_pretrained(str(folder))


def concatenated(adapters: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of A and columns of B below and beside each other, by tensor name: the product is the sum of products."""
    import torch

    assert len({tuple(sorted(tensors)) for tensors in adapters}) == 1, "adapters of a run sit on the same layers"
    return {
        name: torch.cat([tensors[name] for tensors in adapters], dim=0 if ".lora_A." in name else 1).contiguous()
        for name in adapters[0]
    }


def shapes_of(checkpoint: Path) -> list[tuple[int, int]]:
    """Rank and inputs of each layer's A in a stage's checkpoint, without reading the matrices."""
    from safetensors import safe_open

    with safe_open(str(checkpoint / "adapter" / "adapter_model.safetensors"), framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in list(tensors.keys()) if ".lora_A." in name]
    return [(rank, inputs) for rank, inputs in shapes]


def inner_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The Transformers model, its adapter layers within it.

    Raises:
        ModelError: a part of the model does not sit in its layers, so that whoever computes with the inner model
            would leave it out.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    outside = [name for name, settings in model.peft_config.items() if settings.is_prompt_learning]
    if outside:
        kind = model.peft_config[outside[0]].peft_type.value
        raise ModelError(
            f"the part {outside[0]!r} of this model stands before its prompts ({kind}), where training and generation "
            "here would not see it: use adapters in its layers (LoRA)."
        )
    return model.get_base_model()


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
