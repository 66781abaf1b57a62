"""Merging models that were trained from the same base: averages, sums of changes, TIES, DARE.

A model is its base plus a change; what is merged are the changes themselves. Of an adapter that is the product
s * B A, never A and B apart, whose merged product would hold the cross terms of unrelated tasks (PEFT's `linear`,
`ties` and `dare_*` take them apart; of two unrelated adapters that was further from their mean than nothing at all).

Weighted sums of adapters are kept exactly, as one adapter whose rank is the sum of theirs. What is no such sum, or is
to have a smaller rank, is cut by a singular value decomposition, and it is said how much of it stays. Tensors are
read one by one; only TIES needs all magnitudes of one model at once, for its threshold.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from everlearn.errors import ModelError
from everlearn.files import read_mapping, write_json
from everlearn.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor

How = Literal["soup", "arithmetic", "ties", "dare_linear", "dare_ties"]
_A, _B = "lora_A.weight", "lora_B.weight"


@dataclass(frozen=True)
class Recipe:
    """How changes become one.

    Attributes:
        how: `soup`: their mean; `arithmetic`: their sum; `ties`; `dare_linear`, `dare_ties`: the sum, or TIES without
            its trimming, of what DARE leaves of them.
        scale: Factor of the merged change (`soup` has none).
        density: Share of entries that TIES or DARE keeps.
        seed: Of the entries that DARE drops.
    """

    how: How
    scale: float = 1.0
    density: float = 1.0
    seed: int = 0

    def weight(self, count: int) -> float | None:
        """Factor of each of so many changes where the merge is their weighted sum; else None."""
        return {"soup": 1 / count, "arithmetic": self.scale}.get(self.how)


Read = Callable[[int, str], "Tensor"]
"""The change of a model (its place among those merged) in one tensor, float32."""


def trim_threshold(magnitudes: Tensor, density: float) -> float:
    """The magnitude from which on TIES keeps entries: the (d - int(density * d))-th smallest of d."""
    smaller = magnitudes.numel() - int(density * magnitudes.numel())
    return float(magnitudes.kthvalue(smaller).values) if smaller else 0.0


def elected_signs(values: Sequence[Tensor], majority: float) -> Tensor:
    """TIES' vote: the sign of each entry's sum; a tied entry has the sign of the majority of all entries."""
    import torch

    signs = torch.stack(list(values)).sum(0).sign()
    return torch.where(signs == 0, torch.full_like(signs, majority), signs)


def agreeing_mean(values: Sequence[Tensor], signs: Tensor) -> Tensor:
    """The mean of the values that have the elected sign, entry by entry; 0 where none has."""
    import torch

    stacked = torch.stack(list(values))
    agree = torch.where(signs > 0, stacked > 0, stacked < 0)
    return (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)


def dropped(value: Tensor, kept: Tensor, density: float) -> Tensor:
    """DARE: the kept entries divided by the share that is kept, so that the expected change stays."""
    return value * kept / density


def merged(names: Sequence[str], count: int, read: Read, recipe: Recipe) -> Callable[[str], Tensor]:
    """The merged change, tensor by tensor.

    Args:
        names: Of the tensors.
        count: Models to merge.
        read: Their changes.
        recipe: How.
    """
    import torch

    kept = read
    if recipe.how == "ties":

        @cache
        def threshold(at: int) -> float:
            return trim_threshold(torch.cat([read(at, name).abs().flatten() for name in names]), recipe.density)

        def kept(at: int, name: str) -> Tensor:
            value = read(at, name)
            return value * (value.abs() >= threshold(at))

    elif recipe.how.startswith("dare"):

        def kept(at: int, name: str) -> Tensor:
            value = read(at, name)
            draw = torch.Generator().manual_seed(derive(recipe.seed, at, name))
            return dropped(value, torch.rand(value.shape, generator=draw) < recipe.density, recipe.density)

    def all_of(name: str) -> list[Tensor]:
        return [kept(at, name) for at in range(count)]

    if recipe.how in ("ties", "dare_ties"):
        votes = sum(float(torch.stack(all_of(name)).sum(0).sign().sum()) for name in names)
        majority = math.copysign(1.0, votes) if votes else 0.0

        def tied(name: str) -> Tensor:
            values = all_of(name)
            return recipe.scale * agreeing_mean(values, elected_signs(values, majority))

        return tied
    weight = recipe.weight(count) or recipe.scale
    return lambda name: weight * torch.stack(all_of(name)).sum(0)


def merge_adapters(folders: Sequence[Path], target: Path, recipe: Recipe, rank: int | None) -> float:
    """Merges adapters of one base into another one.

    Args:
        folders: Adapters, on the same layers; the last one also gives what stands beside the weights.
        target: Folder to be made.
        recipe: How.
        rank: Of the merged adapter; None: the sum of the ranks.

    Returns:
        The share of the merged change (of its squared norm) that the rank leaves; 1 where it is exact.

    Raises:
        ModelError: an adapter is none whose product can be merged.
    """
    from safetensors.torch import load_file, save_file

    loaded = [load_file(str(folder / "adapter_model.safetensors")) for folder in folders]
    settings = [read_mapping(folder / "adapter_config.json") for folder in folders]
    scales = [_scale(one, folder) for one, folder in zip(settings, folders, strict=True)]
    modules = [name.removesuffix(_A) for name in loaded[0] if name.endswith(_A)]
    assert all(one.keys() == loaded[0].keys() for one in loaded), "the adapters of a run sit on the same layers"

    def read(at: int, module: str) -> Tensor:
        return scales[at] * (loaded[at][module + _B].float() @ loaded[at][module + _A].float())

    total = sum(one["r"] for one in settings)
    weight = recipe.weight(len(folders))
    tensors: dict[str, Tensor] = {}
    whole = left = 0.0
    if weight is not None and (rank is None or rank >= total):
        rank = total
        for module in modules:
            tensors |= _side_by_side([(one[module + _A], one[module + _B]) for one in loaded], scales, weight, module)
    else:
        rank = rank or total
        change = merged(modules, len(folders), read, recipe)
        for module in modules:
            a, b, all_squares, kept_squares = _cut(change(module), rank)
            tensors |= {module + _A: a, module + _B: b / scales[-1]}
            whole, left = whole + all_squares, left + kept_squares
    shutil.copytree(folders[-1], target, dirs_exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()},
        str(target / "adapter_model.safetensors"),
        metadata={"format": "pt"},
    )
    merged_settings = {**settings[-1], "use_rslora": False, "r": rank, "lora_alpha": scales[-1] * rank}
    write_json(target / "adapter_config.json", merged_settings)
    return left / whole if whole else 1.0


def _scale(settings: Mapping[str, Any], folder: Path) -> float:
    """The factor of an adapter's product B A in what it adds.

    Raises:
        ModelError: it adds something else than that product, or not the same multiple on all layers.
    """
    others = ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern")
    if kind := settings["peft_type"] if settings["peft_type"] != "LORA" else next(filter(settings.get, others), None):
        raise ModelError(
            f"the adapter in {folder} cannot be merged ({kind}): what it adds is no plain product of its matrices; "
            "merge plain LoRA adapters."
        )
    rank: int = settings["r"]
    return float(settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _side_by_side(
    pairs: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float], weight: float, module: str
) -> dict[str, Tensor]:
    """A's below each other, weighted B's beside each other, under the scale of the last adapter."""
    import torch

    rows = torch.cat([a for a, _ in pairs])
    weighted = [b * (weight * scale / scales[-1]) for (_, b), scale in zip(pairs, scales, strict=True)]
    columns = torch.cat(weighted, dim=1)
    return {module + _A: rows, module + _B: columns}


def _cut(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The nearest product B A of a rank, filled up with zeros; the squared norm before and after."""
    import torch

    u, values, v = torch.linalg.svd(change, full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    a, b = change.new_zeros(rank, change.shape[1]), change.new_zeros(change.shape[0], rank)
    a[:kept], b[:, :kept] = root[:, None] * v[:kept], u[:, :kept] * root
    return a, b, float(values.square().sum()), float(values[:kept].square().sum())


def merge_models(folders: Sequence[Path], base: Path | None, target: Path, recipe: Recipe) -> None:
    """Merges models into another one, tensor by tensor.

    Args:
        folders: Models of one architecture; the last one also gives what stands beside the weights.
        base: What they were trained from; `soup` does without.
        target: Folder to be made.
        recipe: How.
    """
    from safetensors.torch import load_file, save_file

    open_all = [_reader(folder) for folder in folders]
    start = _reader(base) if base is not None else None
    shutil.copytree(folders[-1], target, dirs_exist_ok=True)
    files = {file: load_file(str(file)) for file in sorted(target.glob("*.safetensors"))}
    names = [name for tensors in files.values() for name, value in tensors.items() if value.is_floating_point()]

    def read(at: int, name: str) -> Tensor:
        value = open_all[at](name).float()
        return value if start is None else value - start(name).float()

    change = merged(names, len(folders), read, recipe)
    for file, tensors in files.items():
        for name in set(names) & tensors.keys():
            value = change(name) if start is None else start(name).float() + change(name)
            tensors[name] = value.to(tensors[name].dtype).contiguous()
        save_file(tensors, str(file), metadata={"format": "pt"})


def _reader(folder: Path) -> Callable[[str], Tensor]:
    """Reads tensors of a model's folder by name, one at a time."""
    from safetensors import safe_open

    opened = [safe_open(str(file), framework="pt") for file in sorted(folder.glob("*.safetensors"))]
    places = {name: file for file in opened for name in list(file.keys())}
    return lambda name: places[name].get_tensor(name)
