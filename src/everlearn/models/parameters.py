"""The parameters that tuning moves, by name: those of the adapter, or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module, Parameter


def tuned_parameters(model: Module) -> dict[str, Parameter]:
    """Name to parameter of what training changes, whether or not it is set to be trained just now.

    Args:
        model: A Transformers model, or one with PEFT adapters; then only the active adapters' parameters count, and
            of several that compute together, while some are being trained, only theirs.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    named = dict(model.named_parameters())
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return {name: weight for name, weight in named.items() if f"prompt_encoder.{model.active_adapter}." in name}
    prefixes = [
        f"{path}.{part}.{adapter}"
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
        for part in module.adapter_layer_names
        for adapter in module.active_adapters
    ]
    if not prefixes:
        return named
    within = {name for name in named if any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)}
    moving = {name for name in within if named[name].requires_grad}
    return {name: parameter for name, parameter in named.items() if name in (moving or within)}
