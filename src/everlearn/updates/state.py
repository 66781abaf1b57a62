"""The whole state of training as plain files: weights, optimizer moments, and JSON with step, cursor and seeds.

A state folder holds `model.safetensors`, `optimizer.safetensors` (absent where the optimizer starts afresh) and
`state.json`, which is written last, with sums of all files. Dropout draws from a stream seeded by the data position
and the process, so the state of the random generator is the pair of seed and position. Tensors are stored whole,
whatever the number of processes, so a run may go on with another number.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everlearn.errors import RunError
from everlearn.files import read_mapping, sums_of, write_error, write_json
from everlearn.updates.processes import Processes, fill, whole

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    record: Mapping[str, object],
    processes: Processes,
) -> None:
    """Writes a state folder atomically; every process must call it, the first one writes.

    Args:
        folder: The state folder; replaced if it exists.
        model: Its parameters and buffers are stored by name.
        optimizer: AdamW, or None to store no moments.
        record: What `state.json` holds.
        processes: This process among all.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    weights = {name: whole(tensor) for name, tensor in named_tensors(model).items()}
    moments: dict[str, Tensor] = {}
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for moment, tensor in optimizer.state.get(parameter, {}).items():
                assert moment in MOMENTS, f"AdamW has no moment {moment}"
                moments[f"{name}.{moment}"] = whole(tensor)
    if processes.is_first:
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _save(weights, partial / "model.safetensors")
            if moments:
                _save(moments, partial / "optimizer.safetensors")
            write_json(partial / "state.json", {**record, "sums": sums_of(partial, record)})
            replace_folder(partial, folder)
        except (OSError, SafetensorError) as error:
            raise write_error(folder, error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    processes.wait()


def load_weights(path: Path, model: nn.Module) -> None:
    """Fills the model from a safetensors file of a state or of a release.

    Raises:
        RunError: the file is missing, damaged or of another model.
    """
    stored = _load(path)
    for name, tensor in named_tensors(model).items():
        if name not in stored or stored[name].shape != tensor.shape:
            raise RunError(f"{path} does not hold {name} of this model: it belongs to another run; delete it.")
        fill(tensor, stored[name])


def load_moments(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gives an optimizer the moments of a state folder; none are stored before the first step.

    Raises:
        RunError: the file is damaged or of another model.
    """
    path = folder / "optimizer.safetensors"
    stored = _load(path) if path.exists() else {}
    for name, parameter in model.named_parameters():
        keys = {moment: f"{name}.{moment}" for moment in MOMENTS}
        if not all(key in stored for key in keys.values()):
            if stored:
                raise RunError(f"{path} does not hold the moments of {name}: it belongs to another run; delete it.")
            continue
        state = optimizer.state[parameter]
        state["step"] = stored[keys["step"]].clone().to(_step_device(optimizer, parameter))
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment] = torch.zeros_like(parameter)
            fill(state[moment], stored[keys[moment]])


def read_record(folder: Path) -> dict[str, object]:
    """What a state folder's `state.json` holds.

    Raises:
        RunError: one of the folder's files is missing or damaged.
    """
    try:
        record = read_mapping(folder / "state.json")
        sums = record.pop("sums", None)  # none in folders of the first releases
        is_whole = sums is None or sums == sums_of(folder, record)
    except (RunError, OSError):
        is_whole = False
    if not is_whole:
        raise RunError(
            f"{folder} is damaged: delete this folder and run 'everlearn resume', which trains again what it held."
        )
    return record


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and stored buffers by name, shared ones once."""
    parameters = dict(model.named_parameters())
    stored = model.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in stored.items() if not isinstance(tensor, nn.Parameter)}
    return {**parameters, **buffers}


def replace_folder(source: Path, target: Path) -> None:
    """Renames a folder over another one; a kill in between leaves the old or the new, never a mixture."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: Path) -> None:
    """Puts the old folder back where a kill struck between the two renames of `replace_folder`."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, str(path), metadata={"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} is missing or damaged ({error}): delete its folder, and what was computed after it is made again."
        ) from None


def _step_device(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Fused AdamW keeps its step counter beside the parameter."""
    return parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")
