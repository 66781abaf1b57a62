"""The state of training as plain files: tensors by name as safetensors, the rest as JSON with the sums of all files.

A state folder holds `model.safetensors`, `optimizer.safetensors` (absent where the optimizer starts afresh),
`influences.safetensors` (what methods keep within a phase; absent where there is nothing) and `state.json`, which is
written last. Every step seeds its own random stream, so random generators need no state. Tensors are stored whole,
whatever the number of processes, so a run may go on with another number.

Within a stage, checkpoints are state folders `partial-<step>`; each carries the hash of all that the stage depends on
and is ignored when that has changed, or when it is damaged, so that the stage is trained from the checkpoint before,
or from its start.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everlearn.artifacts import remove_files
from everlearn.errors import RunError
from everlearn.files import read_mapping, sums_of, unfinished, write_error, write_json
from everlearn.models.state import MOMENTS
from everlearn.training.influence import Influence
from everlearn.training.optimizers import taken_back, to_store
from everlearn.training.processes import Processes, fill, whole

if TYPE_CHECKING:
    import numpy as np

FORM = 2
"""Of a stage's checkpoints; those of another form are not read, and the stage is trained again."""
LEFT = "left.safetensors"
"""Beside the weights of a phase: what influences have left for their methods."""
_PARTIAL = "partial-"
_FILES = ("model.safetensors", "optimizer.safetensors", "influences.safetensors", "state.json")


def save_state(
    folder: Path,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, object],
    processes: Processes,
    *,
    moments: Mapping[str, Tensor] | None = None,
    influences: Sequence[Influence] = (),
) -> None:
    """Writes a state folder atomically; every process must call it, the first one writes.

    Args:
        folder: The state folder; replaced if it exists.
        tensors: Weights by name.
        record: What `state.json` holds.
        processes: This process among all.
        moments: Of the optimizers, as `moments_of` names them; None to store none.
        influences: Whose state goes along.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    own = {f"{at}.{name}": value for at, one in enumerate(influences) for name, value in one.state().items()}
    files = {"model": tensors, "optimizer": moments or {}, "influences": own}
    partial = unfinished(folder)
    try:
        if processes.is_first:
            partial.mkdir(parents=True)
        for kind, values in files.items():
            found = gathered(values, processes)
            if processes.is_first and (found or kind == "model"):
                _save(found, partial / f"{kind}.safetensors")
        if processes.is_first:
            write_json(partial / "state.json", {**record, "sums": sums_of(partial, record)})
            replace_folder(partial, folder)
    except (OSError, SafetensorError) as error:
        raise write_error(folder, error) from None
    finally:
        if processes.is_first:
            shutil.rmtree(partial, ignore_errors=True)
    processes.wait()


def gathered(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """All tensors whole, in the first process; the others only give their shards, one tensor after the other."""
    kept = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if processes.is_first:
            kept[name] = value
    return kept


def moments_of(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state by parameter and moment."""
    return {
        f"{name}.{moment}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for moment, value in to_store(optimizer.state.get(parameter, {})).items()
    }


def save_moments(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], processes: Processes
) -> None:
    """Writes the moments into a file of an artifact, for a phase that goes on with them; every process must call it.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    moments = gathered(moments_of(model, optimizers), processes)
    if not processes.is_first:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(moments, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from None


def load_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills tensors from a safetensors file of a state or of a release.

    Raises:
        RunError: the file is missing, damaged or of another model.
    """
    stored = _load(path)
    for name, tensor in tensors.items():
        if name not in stored or stored[name].shape != tensor.shape:
            raise RunError(f"{path} does not hold {name} of this model: it belongs to another run; delete it.")
        fill(tensor, stored[name])


def load_moments(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], *, grows: bool = False
) -> None:
    """Gives optimizers the moments of a state folder; none are stored before the first step.

    Args:
        folder: The state folder.
        model: Whose parameters they are.
        optimizers: Get them.
        grows: Whether parameters without stored moments are new, and start afresh.

    Raises:
        RunError: the file is damaged or of another model.
    """
    path = folder / MOMENTS
    if not path.exists():
        return
    stored: dict[str, dict[str, Tensor]] = {}
    for key, value in _load(path).items():
        name, _, moment = key.rpartition(".")
        stored.setdefault(name, {})[moment] = value
    owners = {id(weight): one for one in optimizers for group in one.param_groups for weight in group["params"]}
    for name, parameter in model.named_parameters():
        if id(parameter) not in owners:
            continue
        optimizer = owners[id(parameter)]
        if name not in stored:
            if grows:
                continue
            raise RunError(f"{path} does not hold the moments of {name}: it belongs to another run; delete it.")
        optimizer.state[parameter].update(taken_back(optimizer, parameter, stored[name]))


def load_influences(folder: Path, influences: Sequence[Influence]) -> None:
    """Gives influences their state back."""
    path = folder / "influences.safetensors"
    stored = _load(path) if path.exists() else {}
    for at, influence in enumerate(influences):
        mine = {key.partition(".")[2]: value for key, value in stored.items() if key.partition(".")[0] == str(at)}
        influence.load_state(mine)


def save_left(folder: Path, influences: Sequence[Influence], processes: Processes) -> None:
    """Writes what influences leave when a phase ends; every process must call it, the first one writes.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    own = {f"{type(one).__name__}.{name}": value for one in influences for name, value in one.left().items()}
    kept = gathered(own, processes)
    if kept:
        try:
            _save(kept, folder / LEFT)
        except (OSError, SafetensorError) as error:
            raise write_error(folder, error) from None


def left_by(kind: type[Influence], folder: Path) -> dict[str, np.ndarray]:
    """What influences of a class have left in the folder of a phase, by name.

    Raises:
        RunError: the file is missing or damaged.
    """
    stored = _load(folder / LEFT)
    return {
        key.removeprefix(f"{kind.__name__}."): value.numpy()
        for key, value in stored.items()
        if key.startswith(f"{kind.__name__}.")
    }


def read_record(folder: Path) -> dict[str, Any]:
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


def moving_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that training moves, by name."""
    return {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}


def partial_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a stage after so many steps stands."""
    return folder / f"{_PARTIAL}{step:08d}"


def keep_one_partial(folder: Path, step: int) -> None:
    """Deletes the checkpoints of a stage but the one after so many steps."""
    _delete([path for path in _partials(folder) if path != partial_folder(folder, step)])


def has_partials(folder: Path) -> bool:
    """Whether any checkpoint of a stage is there."""
    return bool(_partials(folder))


def newest_partial(folder: Path, key: str, form: int) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint of a stage with that key and form, and its record; others are deleted."""
    for path in reversed(_partials(folder)):
        try:
            record = read_record(path)
        except RunError:
            record = {}
        if (record.get("key"), record.get("form")) == (key, form):
            return path, record
        _delete([path])
    return None


def delete_partials(folder: Path) -> None:
    """Removes all checkpoints of a stage, as when it is complete."""
    _delete([*_partials(folder), *folder.glob(f".{_PARTIAL}*")])


def is_state(folder: Path) -> bool:
    """Whether any file of a state stands in a folder."""
    return any((folder / name).exists() for name in _FILES)


def remove_state(folder: Path) -> None:
    """Deletes the files of a state; what else somebody has put into its folder stays."""
    remove_files(folder, _FILES)


def replace_folder(source: Path, target: Path) -> None:
    """Renames a folder over another one; a kill in between leaves the old or the new, never a mixture.

    What somebody has put into the old one is moved to the new one.
    """
    old = _old(target)
    _empty_into(old, target)
    if target.exists():
        target.rename(old)
    source.rename(target)
    _empty_into(old, target)


def recover_folder(target: Path) -> None:
    """Puts the old folder back where a kill struck between the two renames of `replace_folder`."""
    old = _old(target)
    if old.exists() and not target.exists():
        old.rename(target)
    _empty_into(old, target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old.everlearn")


def _empty_into(old: Path, target: Path) -> None:
    """Moves what everlearn has not made from the old folder, and deletes the rest with it."""
    for path in [path for path in old.rglob("*") if not path.is_dir() or path.is_symlink()]:
        place = target / path.relative_to(old)
        if path.name not in _FILES and not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
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


def _partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PARTIAL}*")) if folder.is_dir() else []


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
