"""Whether a model is one that can be used here, by what its files describe: no weights are read."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from everlearn.devices import GIB, choose_device, total_bytes
from everlearn.errors import ModelError
from everlearn.models import adapters
from everlearn.models.descriptions import blamed, check_generation, check_vocabulary, read_config, read_tokenizer
from everlearn.models.faults import reason_of, told
from everlearn.models.json_files import read_object
from everlearn.models.loading import weights_dtype
from everlearn.models.quantization import check_quantization, loaded_bytes
from everlearn.models.sources import BaseSource, find_base
from everlearn.models.targets import with_targets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from everlearn.recipe import ModelConfig

_MOST_TIMES = 2
"""So many times the stored weights a model may have; it is told as missing tensors where it has a few more."""


def check_model(
    config: ModelConfig, *, trains: bool = False, sharers: int = 1, optimizer: str = "adamw"
) -> ModelConfig:
    """Refuses what cannot work, without reading weights.

    Args:
        config: Which base and how it is tuned.
        trains: Whether it is to be trained, which takes more memory.
        sharers: Processes of which each trains a part of the weights.
        optimizer: `training.optimizer`.

    Returns:
        The same with the targets that `auto` means for this model, so that they are part of what results depend on.

    Raises:
        ModelError: no such model, not a causal language model, no tokenizer or end token, no safetensors weights,
            a tokenizer that does not fit, an absent device, one with too little memory or that cannot compute with
            quantized weights, states that generation cannot carry on, or an adapter that the model cannot have.
        MissingExtraError: what quantizes is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = choose_device(config.device)
    check_quantization(config.quantization, device)
    source = find_base(config, weights=False)
    settings = read_config(source)
    check_generation(source, settings)
    check_vocabulary(source, read_tokenizer(source), settings)
    tree = read_object(source.folder / "config.json", source.label)
    with torch.device("meta"):
        with told(blamed(source, tree, builds=True), "mend it"):
            try:
                model = AutoModelForCausalLM.from_config(settings)
            except ImportError as error:
                reason = reason_of(error)
                raise ModelError(f"{source.label} needs a package that is not installed ({reason}).") from None
        has_cache = "past_key_values" in inspect.signature(model.forward).parameters
        if not has_cache or not model._supports_default_dynamic_cache():
            raise ModelError(
                f"{source.label}: {settings.model_type} models keep what they have read in a way of their "
                f"own ({'no DynamicCache' if has_cache else 'no past_key_values'}), which generation here does not "
                "know: choose a model with attention."
            )
        _check_sizes(source, model)
        _check_room(source.label, model, config, device, sharers, optimizer if trains else None)
        lora = with_targets(config.lora, model if config.tuning == "lora" else None)
        if config.tuning == "lora":
            adapters.attach_adapter(model, lora, seed=0)
    return config.model_copy(update={"lora": lora})


def _check_sizes(source: BaseSource, model: PreTrainedModel) -> None:
    """Refuses sizes that the weights cannot have, before as much memory is taken.

    Raises:
        ModelError: a layer of no width, or far more weights than the files hold.
    """
    for path, weight in model.named_parameters():
        if not weight.numel():
            raise ModelError(
                f"{source.label}: config.json gives the tensor {path} the shape {tuple(weight.shape)}: mend the size "
                "that is 0."
            )
    described = model.num_parameters()
    if source.stored is not None and described > _MOST_TIMES * source.stored:
        raise ModelError(
            f"{source.label}: config.json describes {described:,} weights, and the files hold {source.stored:,}: they "
            "do not belong together; mend the sizes, or download the model again."
        )


def _check_room(
    name: str,
    model: PreTrainedModel,
    config: ModelConfig,
    device: torch.device,
    sharers: int,
    optimizer: str | None,
) -> None:
    """Refuses a model that is certain to find too little memory.

    Raises:
        ModelError: says how much it takes at least, how much there is, and what takes less.
    """
    dtype, weights = weights_dtype(config, device), model.num_parameters()
    loaded = loaded_bytes(model, config.quantization, dtype)
    tunes_all = config.tuning == "full" and optimizer is not None
    moments = weights * 2 * (1 if optimizer == "adamw_8bit" else dtype.itemsize)
    trained = (2 * loaded + moments if tunes_all else loaded) / sharers  # with gradients and AdamW's moments
    needed, there = max(loaded, trained), total_bytes(device)  # it is loaded, and measured, as a whole
    if needed <= there:
        return
    form = str(dtype).removeprefix("torch.") if config.quantization == "none" else config.quantization
    what = f"{'full tuning' if tunes_all else 'a model'} of {weights / 1e9:.1f} billion weights in {form}"
    remedies = ["set model.tuning to lora"] if tunes_all else []
    remedies += ["set model.dtype to bfloat16"] if dtype.itemsize > 2 else []
    remedies += ["set model.quantization to nf4"] if config.tuning == "lora" and config.quantization != "nf4" else []
    raise ModelError(
        f"{name}: {what} takes at least {needed / GIB:.0f} GiB of memory, and {device} "
        f"has {there / GIB:.0f}: {', or '.join([*remedies, 'choose a smaller model'])}."
    )
