"""Kinds of parts: how a new one is put on a model, and what a stored one may say of itself.

LoRA is the kind that the recipe describes (`models/adapters.py`). A method may add parts of another kind
(`Tuning.adds`): any tuner of PEFT's by its name there, or an own one of this house. What is stored and loaded again
is one of `STORED`: other tuners of PEFT are for one training, after which they are merged into the weights.

A soft prompt sits in no layer: its vectors stand before the tokens of each row. PEFT's wrapper puts them there;
whoever computes with the model inside the wrapper has to, and `soft_prompt` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everlearn.errors import ModelError
from everlearn.models.padding import hides_padding
from everlearn.models.sides import Sides
from everlearn.models.targets import check_rank, check_targets, linear_modules, peft_targets, with_targets

if TYPE_CHECKING:
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from everlearn.models.state import PartSettings
    from everlearn.recipe import LoraConfig

LORA, PROMPT, EXPERTS = "LORA", "PROMPT_TUNING", "MOE_LORA"
_EVERY = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_version",
          "auto_mapping"}  # fmt: skip
_LAYERS = _EVERY | {
    "r", "init_lora_weights", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias",
    "fan_in_fan_out", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "layers_pattern", "modules_to_save",
}  # fmt: skip
_PROMPTS = _EVERY | {
    "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
    "prompt_tuning_init",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A kind of part that is loaded from folders.

    Attributes:
        label: What it is called.
        settings: Keys of `adapter_config.json` that say no more than what such a part is; others must have PEFT's
            defaults, since some have files opened, modules imported or the base changed.
        sizes: Keys that say how large it is: each from 1 to the longest side of its tensors.
        checks: Key to whether its value is wrong.
    """

    label: str
    settings: frozenset[str]
    sizes: tuple[str, ...]
    checks: Mapping[str, Callable[[object], bool]]


def _starts_oddly(value: object) -> bool:
    return value not in (True, False, "gaussian")


def _reads_text(value: object) -> bool:
    return value not in ("RANDOM", "SAMPLE_VOCAB")


STORED = {
    LORA: Stored("LoRA adapter", frozenset(_LAYERS), ("r",), {"init_lora_weights": _starts_oddly}),
    EXPERTS: Stored(
        "mixture of LoRA experts",
        frozenset(_LAYERS | {"experts"}),
        ("r", "experts"),
        {"init_lora_weights": _starts_oddly},
    ),
    PROMPT: Stored(
        "soft prompt",
        frozenset(_PROMPTS),
        ("num_virtual_tokens", "token_dim"),
        {
            "prompt_tuning_init": _reads_text,
            "num_transformer_submodules": lambda value: value is not None and value != 1,
        },
    ),
}


def wrong_setting(settings: Mapping[str, Any], longest: int) -> str | None:
    """The first key of a stored part's settings that no part of its kind has here; None: all can be used.

    Args:
        settings: Of its `adapter_config.json`.
        longest: Side of its tensors.
    """
    kind = settings.get("peft_type")
    stored = STORED.get(kind) if isinstance(kind, str) else None
    if stored is None:
        return "peft_type"
    for key in stored.sizes:
        size = settings.get(key)
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= longest:
            return key
    for key, is_wrong in stored.checks.items():
        if is_wrong(settings.get(key, True)):
            return key
    return next(
        (
            key
            for key, value in settings.items()
            if value and key not in stored.settings and not _is_default(str(kind), key, value)
        ),
        None,
    )


def _is_default(kind: str, key: str, value: object) -> bool:
    from peft import LoraConfig, PromptTuningConfig

    return bool(getattr(PromptTuningConfig if kind == PROMPT else LoraConfig, key, None) == value)


def part_config(settings: PartSettings, config: LoraConfig, model: PreTrainedModel) -> PeftConfig:
    """PEFT's configuration of a new part.

    Args:
        settings: What the part is.
        config: The recipe's adapter, whose layers, rank, alpha and dropout our own kind takes.
        model: That it is put on.
    """
    from peft import TaskType, get_peft_config

    if settings.kind == EXPERTS:
        from everlearn.models.experts import experts_config

        return experts_config(lora_config(config, model), **settings.options)  # type: ignore[arg-type]
    return get_peft_config({"peft_type": settings.kind, "task_type": TaskType.CAUSAL_LM, **settings.options})


def lora_config(config: LoraConfig, model: PreTrainedModel) -> PeftLoraConfig:
    """PEFT's configuration of an adapter that the recipe describes; its targets are known by name.

    Raises:
        ModelError: the model lacks the targets, or cannot have such a rank on them.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType
    from transformers.pytorch_utils import Conv1D

    config = with_targets(config, model)
    check_targets(model, config.targets)
    check_rank(model, config)
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=peft_targets(model, config),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear_modules(model).values()),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )


def stored_config(settings: Mapping[str, Any]) -> PeftConfig | None:
    """PEFT's configuration of a stored part of our own kind; None: PEFT reads it by itself."""
    if settings["peft_type"] != EXPERTS:
        return None
    from everlearn.models.experts import stored_experts

    return stored_experts(settings)


def own_settings(config: PeftConfig) -> dict[str, object]:
    """What `adapter_config.json` says of a part of our own kind beside PEFT's keys, so that PEFT refuses it."""
    experts = getattr(config, "experts", None)
    return {} if experts is None else {"peft_type": EXPERTS, "experts": experts}


def soft_prompt(model: PreTrainedModel | PeftModel) -> Tensor | None:
    """The vectors that the active part puts before the tokens of each row, (tokens, width); None: there are none."""
    from peft import PeftModel

    if not isinstance(model, PeftModel) or model._adapters_disabled or not model.active_peft_config.is_prompt_learning:
        return None
    prompt: Tensor = model.get_prompt(batch_size=1)[0]
    return prompt


def check_takes_prompt(model: PreTrainedModel, tokens: int) -> None:
    """Refuses a model on which a soft prompt cannot be computed as a part of each row.

    Raises:
        ModelError: says why.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if hides_padding(model) and (longest is None or tokens < longest) and Sides(model).end(0) is None:
        return
    raise ModelError(
        f"this {model.config.model_type} model cannot have a soft prompt of {tokens} tokens before its rows (its "
        "layers see padding, its rotary embedding changes with the length, or its context is shorter): use LoRA."
    )
