"""LoRA as a mixture of experts within each layer (the adapter of CoIN, arXiv 2403.08350; its code was read).

An adapter of rank r is divided into E experts of rank r / E, and a router R weighs them token by token:

    y = W x + s * sum_e softmax(R x)_e * B_e A_e dropout_e(x)        s = alpha / r, r being that of all experts

The router sees x without dropout; each expert draws a mask of its own. All experts act on every token (no top-k, no
balancing). A_e is drawn from N(0, 0.01^2), B_e is 0, R is torch's default for linear layers, and its softmax is
computed in float32 (chosen here).

Since the experts stand one below the other in A and beside each other in B, this is PEFT's LoRA with a gate between A
and B: everything that PEFT does for LoRA holds, but for merging, which a gate that depends on x forbids. PEFT alone
would load such a folder as plain LoRA, without its gate; so its settings name a kind that PEFT does not know, and
`put_experts` loads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from everlearn.files import read_mapping

if TYPE_CHECKING:
    from transformers import PreTrainedModel

START = 0.01
"""Standard deviation of A at its start (CoIN's code)."""


def gate_of(x: Tensor, router: Tensor) -> Tensor:
    """The weight of each expert for each token, (..., experts), float32 or finer.

    Args:
        x: What the layer is given, (..., inputs).
        router: (experts, inputs).
    """
    dtype = torch.promote_types(router.dtype, torch.float32)
    return torch.softmax(x.to(dtype) @ router.to(dtype).T, dim=-1)


def gated(hidden: Tensor, gate: Tensor) -> Tensor:
    """Weighs what A gives, (..., rank), by the gate of its experts, (..., experts)."""
    return hidden * gate.repeat_interleave(hidden.shape[-1] // gate.shape[-1], dim=-1).to(hidden.dtype)


class ExpertLinear(LoraLinear):
    """A linear layer with experts beside it."""

    adapter_layer_names = (*LoraLinear.adapter_layer_names, "lora_router")

    def __init__(self, base_layer: nn.Module, adapter_name: str, *, experts: int, **settings: Any) -> None:
        self._experts = experts
        super().__init__(base_layer, adapter_name, **settings)

    def update_layer(self, adapter_name: str, *sizes: Any, **settings: Any) -> None:
        """Adds an adapter and its router."""
        if not hasattr(self, "lora_router"):
            self.lora_router = nn.ModuleDict({})
        self.lora_router[adapter_name] = nn.Linear(self.in_features, self._experts, bias=False)
        super().update_layer(adapter_name, *sizes, **settings)

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: bool | str) -> None:
        """Draws the experts, before they go to the layer's device: a generator there is not seeded."""
        super().reset_lora_parameters(adapter_name, init_lora_weights)
        nn.init.normal_(self.lora_A[adapter_name].weight, std=START)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output, and what the experts of the active adapters add to it."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name not in self.lora_A:
                continue
            a, b, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
            router: Tensor = self.lora_router[name].weight  # type: ignore[assignment]
            own = x.to(a.weight.dtype)
            if self.training and isinstance(dropout, nn.Dropout):
                hidden = torch.cat([dropout(own) @ rows.T for rows in a.weight.chunk(self._experts)], dim=-1)
            else:
                hidden = a(own)
            added = b(gated(hidden, gate_of(x, router))) * self.scaling[name]
            result = result + added.to(result.dtype)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: what the experts add depends on the token."""
        raise NotImplementedError("experts with a gate cannot be merged into a weight")


def experts_config(lora: LoraConfig, experts: int) -> LoraConfig:
    """The configuration of experts that share an adapter's rank.

    Args:
        lora: Of the adapter.
        experts: How many; they divide its rank.
    """
    assert lora.r % experts == 0, "a method has checked that the experts divide the rank"
    layer = partial(ExpertLinear, experts=experts)
    lora._register_custom_module({nn.Linear: layer, Conv1D: layer})
    lora.experts = experts
    return lora


def stored_experts(settings: Mapping[str, Any]) -> LoraConfig:
    """The configuration that a folder's settings describe."""
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    kept = {key: value for key, value in settings.items() if key in known and key not in ("peft_type", "auto_mapping")}
    return experts_config(LoraConfig(**kept), settings["experts"])


def put_experts(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Puts the experts of a folder that a run has handed back on their base; to be used as PEFT's models are.

    Args:
        model: The base.
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
    """
    config = stored_experts(read_mapping(Path(folder) / "adapter_config.json"))
    return PeftModel.from_pretrained(model, str(folder), config=config).eval()
