"""Adapters and other parts through PEFT's public API: making, loading and switching them off.

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
from typing import TYPE_CHECKING, Any

from everlearn.errors import ModelError
from everlearn.files import read_mapping, write_json
from everlearn.models.faults import told
from everlearn.models.folders import check_tensors
from everlearn.models.json_files import read_object
from everlearn.models.kinds import (
    lora_config,
    own_settings,
    part_config,
    soft_prompt,
    stored_config,
    wrong_setting,
)
from everlearn.models.state import MOVING
from everlearn.ordinary_files import is_regular, shown

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from everlearn.models.state import PartSettings
    from everlearn.recipe import LoraConfig


def attach_adapter(
    model: PreTrainedModel | PeftModel,
    config: LoraConfig,
    *,
    seed: int,
    revision: str | None = None,
    part: PartSettings | None = None,
    name: str = MOVING,
) -> PeftModel:
    """Puts a fresh trainable part on the model; its first values depend on `seed` alone.

    Args:
        model: Gets the part in place.
        config: Shape of an adapter.
        seed: Of the values.
        revision: The base model's commit on the hub, which the saved part names.
        part: What else it is than such an adapter.
        name: How it is called within the model.

    Raises:
        ModelError: the model lacks the targets, cannot have such a part on them, or not this one.
    """
    import torch
    from peft import PeftModel, get_peft_model

    kind = model.config.model_type
    settings = lora_config(config, model) if part is None else part_config(part, config, model)
    settings.revision = revision
    what = "such an adapter" if part is None else f"a part of the kind {part.kind}"
    with torch.random.fork_rng(devices=[]), _without_future_warnings():
        torch.default_generator.manual_seed(seed)
        with told(
            f"model.lora: this {kind} model cannot have {what}",
            "name other model.lora.targets, or set model.lora.dropout to 0 if it is at fault",
        ):
            if isinstance(model, PeftModel):
                model.add_adapter(name, settings)
                return model
            return get_peft_model(model, settings, adapter_name=name)


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
    settings = _checked_settings(folder, what)
    remedy = "use the base that it was trained on, or delete it and run 'everlearn resume'"
    with told(f"{what} does not fit this base model or is damaged", remedy), _without_future_warnings():
        config = stored_config(settings)
        device = str(model.device)  # left out: any GPU of the machine, whatever the recipe says
        options = {"adapter_name": name, "is_trainable": trainable, "torch_device": device}
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(folder), config=config, **options)
        assert config is None, "a part of a kind that PEFT does not know is alone on its model"
        model.load_adapter(str(folder), **options)
        return model


def activate(model: PeftModel, active: Sequence[str], moving: Collection[str]) -> None:
    """Sums these adapters, and lets these of them be trained (PEFT alone would train whatever is active)."""
    with _without_future_warnings():
        if any(model.peft_config[name].is_prompt_learning for name in active):
            (only,) = active  # PEFT puts no two prompts before a row
            model.set_adapter(only)
        else:
            model.base_model.set_adapter(list(active))
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(any(f".{name}." in f"{path}." for name in moving))


def _checked_settings(folder: Path, what: str) -> dict[str, Any]:
    """The settings of a part, unless they have files opened, modules imported or the base changed.

    Raises:
        ModelError: names the key.
    """
    from safetensors import safe_open

    file = folder / "adapter_config.json"
    settings = read_object(file, what)
    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as tensors:
        longest = max(
            (max(tensors.get_slice(name).get_shape(), default=0) for name in list(tensors.keys())), default=0
        )
    if key := wrong_setting(settings, longest):
        raise ModelError(
            f"{what}: {file.name}: {key} is {shown(repr(settings.get(key)))}, which no adapter has that can be "
            "used here (plain LoRA, or what a method of everlearn has made): give another one, or delete it and run "
            "'everlearn resume'."
        )
    return settings


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes weights and settings of the adapter that is carried on, the same bytes in every process."""
    for settings in model.peft_config.values():
        if isinstance(
            getattr(settings, "target_modules", None), set
        ):  # PEFT would write it in the order of its hashes
            settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(str(folder), selected_adapters=[MOVING], save_embedding_layers=False)
    if own := own_settings(model.peft_config[MOVING]):
        write_json(folder / "adapter_config.json", {**read_mapping(folder / "adapter_config.json"), **own})


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


def inner_model(model: PreTrainedModel | PeftModel, *, sees_prompt: bool = False) -> PreTrainedModel:
    """The Transformers model, its adapter layers within it.

    Args:
        model: Perhaps with parts on it.
        sees_prompt: Whether the caller puts a soft prompt before each row (`kinds.soft_prompt`).

    Raises:
        ModelError: a part of the model does not sit in its layers, so that whoever computes with the inner model
            would leave it out.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    if not sees_prompt and soft_prompt(model) is not None:
        name = model.active_adapter
        kind = model.peft_config[name].peft_type.value
        raise ModelError(
            f"the part {name!r} of this model stands before its prompts ({kind}), where what is computed here (an "
            "embedding of texts) would not see it: use adapters in its layers (LoRA)."
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
