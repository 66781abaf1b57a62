"""AdamW in its two forms, as `training.optimizer` names them: what is made, tried before a run, and taken back.

`adamw_8bit` is bitsandbytes' (Dettmers et al. 2022, arXiv 2110.02861): moments in blocks of 256, each of eight bits
with a scale, in a table that both have; tensors of fewer than 4,096 weights keep whole moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from everlearn.models.faults import told
from everlearn.models.quantization import bitsandbytes_for
from everlearn.training.processes import fill, is_sharded

KEY = "training.optimizer"
_QUANTIZED_FROM = 4096


def make_adamw(
    model: nn.Module,
    *,
    rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    parts: Mapping[str, float] | None = None,
    optimizer: str = "adamw",
) -> torch.optim.Optimizer:
    """A fresh AdamW over the moving parameters; matrices decay, vectors (norms, biases) do not.

    Args:
        model: `requires_grad` says which move.
        rate: Learning rate.
        weight_decay: Of the matrices.
        betas: Of the moments.
        parts: Name of a part of the model to the factor of its rate; parameters of none of them have the rate itself.
        optimizer: `training.optimizer`.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    factors = {
        name: next((factor for part, factor in (parts or {}).items() if f".{part}." in f"{name}."), 1.0)
        for name, _ in named
    }
    groups = [
        {
            "params": [
                weight
                for name, weight in named
                if (weight.ndim >= 2, factors[name], is_sharded(weight)) == (decays, factor, of_parts)
            ],
            "weight_decay": weight_decay if decays else 0.0,
            "rate_factor": factor,
        }
        for factor in dict.fromkeys(factors.values())
        for decays in (True, False)
        for of_parts in (False, True)
    ]
    return adamw([group for group in groups if group["params"]], rate=rate, betas=betas, optimizer=optimizer)


def adamw(
    groups: list[dict[str, Any]],
    *,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    optimizer: str = "adamw",
) -> torch.optim.Optimizer:
    """AdamW over groups of parameters: torch's, or bitsandbytes' with moments of eight bits."""
    if optimizer == "adamw_8bit":
        made: torch.optim.Optimizer = bitsandbytes_for(KEY, optimizer).optim.AdamW8bit(groups, lr=rate, betas=betas)
        return made
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=fused)


def check_optimizer(optimizer: str, device: torch.device) -> None:
    """Tries it on a few numbers, where that is not torch's own.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ModelError: it has nothing for this device.
    """
    if optimizer == "adamw":
        return
    weight = nn.Parameter(torch.ones(_QUANTIZED_FROM, device=device))
    weight.grad = torch.ones_like(weight)
    tried = adamw([{"params": [weight]}], rate=1e-3, optimizer=optimizer)
    remedy = f"set {KEY} to adamw, or model.device to cpu or cuda"
    with told(f"{KEY}: {optimizer}: bitsandbytes cannot compute on {device}", remedy):
        tried.step()


def to_store(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """An optimizer's state of a weight as tensors, none of which is another weight's: tables of eight bits are."""
    return {
        name: value.clone() if name.startswith("qmap") else torch.as_tensor(value) for name, value in state.items()
    }


def taken_back(optimizer: torch.optim.Optimizer, weight: Tensor, moments: Mapping[str, Tensor]) -> dict[str, Any]:
    """The optimizer's state of a weight, from what was stored of it as tensors.

    Args:
        optimizer: Of the weight.
        weight: Which may be sharded.
        moments: Whole, by name.
    """
    if not isinstance(optimizer, torch.optim.AdamW):  # numbers of eight bits, their scales, and a plain counter
        return {name: int(value) if value.ndim == 0 else value.to(weight.device) for name, value in moments.items()}
    state: dict[str, Any] = {}
    for name, value in moments.items():
        if value.ndim == 0:  # fused optimizers keep their step counter beside the parameter
            state[name] = value.clone().to(weight.device if optimizer.defaults.get("fused") else "cpu")
        else:
            state[name] = torch.zeros_like(weight)
            fill(state[name], value)
    return state
