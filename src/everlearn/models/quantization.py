"""A frozen base in four or eight bits: what bitsandbytes makes of its linear layers while Transformers loads it.

`nf4` is QLoRA's (arXiv 2305.14314, section 3): blocks of 64 weights in the quantiles of a normal distribution, whose
constants are quantized again in blocks of 256; products are computed in the number format of the other weights. `int8`
is LLM.int8() (arXiv 2208.07339) with its threshold of 6.0: a column of inputs with a larger value anywhere in a batch
is computed in 16 bits, so rounding depends, a little, on the rows that are computed together.

Adapters over such layers stay whole. Nothing is merged into them, since each merge would be rounded to the same few
values.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from everlearn.errors import MissingExtraError
from everlearn.models.faults import told
from everlearn.models.targets import linear_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BYTES = {"nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "int8": 1.0}
"""Of a weight and its share in the constants; `int8` has one more number an output, which is left out."""


def bitsandbytes_for(key: str, value: str) -> Any:
    """The package that a key asks for.

    Raises:
        MissingExtraError: it is not installed, or does not load here.
    """
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError):
        raise MissingExtraError(
            f"{key}: {value} needs the package bitsandbytes: run pip install 'everlearn[gpu]'."
        ) from None
    return bitsandbytes


def check_quantization(quantization: str, device: torch.device) -> None:
    """Tries it on a small layer.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ModelError: it has nothing for this device.
    """
    import torch

    if quantization == "none":
        return
    package = bitsandbytes_for("model.quantization", quantization)
    with told(
        f"model.quantization: {quantization}: bitsandbytes cannot compute on {device}",
        "set model.quantization to none, or model.device to cpu or cuda",
    ):
        if quantization == "nf4":
            layer = package.nn.Linear4bit(64, 64, bias=False, quant_type="nf4")
        else:
            layer = package.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
        dtype = torch.float32 if quantization == "nf4" else torch.float16
        layer.to(device)(torch.ones(2, 64, dtype=dtype, device=device))


def settings_of(quantization: str, dtype: str) -> dict[str, object]:
    """Arguments of Transformers' `BitsAndBytesConfig`.

    Args:
        quantization: `nf4` or `int8`.
        dtype: In which products are computed, as torch calls it (`bfloat16`).
    """
    if quantization == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }


def keep_quantized_layout(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes 0.50 from packing four-bit weights anew, as it does on processors with AVX512-BF16.

    There the first pass outside of training repacks them for good: rounded to bfloat16, for shapes of whole blocks
    alone, and in a product through which no gradient goes, so that training on from there would learn less and say
    nothing. Left as they are, they compute on every processor what they compute on the others.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def loaded_bytes(model: PreTrainedModel, quantization: str, dtype: torch.dtype) -> int:
    """What a model's weights take once it is loaded.

    Args:
        model: Its layers as they are described, perhaps without weights.
        quantization: Of its linear layers.
        dtype: Of all others.
    """
    weights, in_layers = model.num_parameters(), 0
    if quantization != "none":
        in_layers = sum(int(layer.weight.numel()) for layer in linear_modules(model).values())  # type: ignore
    return (weights - in_layers) * dtype.itemsize + math.ceil(in_layers * BYTES.get(quantization, 0.0))
