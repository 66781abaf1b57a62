"""Checkpoints within a stage: the trainable weights, the optimizer's state and the history so far.

A checkpoint is a folder `partial-<step>` beside the stage's other files, written under another name and renamed
when complete; the one before it is deleted afterwards. Tensors are safetensors, the rest is JSON. Random streams
need no state, because each step's is derived from the seed and the step. A checkpoint carries the hash of all that
the stage depends on and is ignored when that has changed, and sums of all its files: a damaged one is
ignored as well, so that the stage is trained from its start, or from the checkpoint before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from everlearn.errors import RunError
from everlearn.files import read_mapping, sums_of, write_error, write_json

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

_NAME = "partial-"


@dataclass(frozen=True, slots=True)
class Partial:
    """Where a stage stands.

    Attributes:
        step: Optimizer steps done.
        seconds: Time they took.
        history: Rows of `history.jsonl` so far.
        most_tokens: Tokens computed at once, as many as memory had room for.
    """

    step: int
    seconds: float
    history: list[dict[str, float]]
    most_tokens: int


def save_partial(
    folder: Path, key: str, partial: Partial, model: Module, optimizer: Optimizer, scheduler: LRScheduler
) -> None:
    """Writes a checkpoint and deletes the one before it.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    target = folder / f"{_NAME}{partial.step:08d}"
    unfinished = folder / f".{target.name}"
    older = _found(folder)
    state = optimizer.state_dict()["state"]
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(_trainable(model), unfinished / "weights.safetensors")
        moments = {f"{at}.{name}": value for at, values in state.items() for name, value in values.items()}
        save_file(moments, unfinished / "optimizer.safetensors")
        schedule = {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}
        record = {
            "key": key,
            "step": partial.step,
            "seconds": partial.seconds,
            "history": partial.history,
            "most_tokens": partial.most_tokens,
            "schedule": schedule,
        }
        write_json(unfinished / "state.json", {**record, "sums": sums_of(unfinished, record)})
        os.replace(unfinished, target)
    except (OSError, SafetensorError) as error:
        raise write_error(target, error) from None
    _delete(older)


def load_partial(
    folder: Path, key: str, model: Module, optimizer: Optimizer, scheduler: LRScheduler
) -> Partial | None:
    """Takes back the newest whole checkpoint with that key; others are deleted."""
    for path in reversed(_found(folder)):
        state = _whole_state(path, key)
        if state is None:
            _delete([path])
            continue
        weights = load_file(path / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in _trainable(model).items():
                parameter.copy_(weights[name])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in load_file(path / "optimizer.safetensors").items():
            at, _, field = name.partition(".")
            moments.setdefault(int(at), {})[field] = value
        groups = optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, state["schedule"]["_last_lr"], strict=True):
            group["lr"] = rate
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        scheduler.load_state_dict({**scheduler.state_dict(), **state["schedule"]})
        return Partial(state["step"], state["seconds"], state["history"], state["most_tokens"])
    return None


def delete_partials(folder: Path) -> None:
    """Removes all checkpoints, as when the stage is complete."""
    _delete([*_found(folder), *folder.glob(f".{_NAME}*")])


def _whole_state(path: Path, key: str) -> dict[str, Any] | None:
    """What `state.json` holds; None where the checkpoint is damaged or another stage's."""
    try:
        state = read_mapping(path / "state.json")
        sums = state.pop("sums")
        is_whole = state["key"] == key and sums == sums_of(path, state)
    except (RunError, KeyError, OSError):
        return None
    return state if is_whole else None


def _trainable(model: Module) -> dict[str, torch.Tensor]:
    return {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}


def _found(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_NAME}*")) if folder.is_dir() else []


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
