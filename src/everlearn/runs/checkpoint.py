"""Which model a checkpoint folder holds."""

from __future__ import annotations

from pathlib import Path

from everlearn.artifacts import RECORD, fault_of, read_record
from everlearn.data.instance import TaskStream
from everlearn.errors import ModelError, RunError
from everlearn.fingerprints import fingerprint_of
from everlearn.models.folders import content_hash
from everlearn.models.state import HEADS, Kind, ModelState, Part
from everlearn.ordinary_files import inside, is_folder


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """The training step's own fingerprint, or a hash of weights and settings for a folder from elsewhere.

    Raises:
        ModelError: there is no such folder, or it holds no weights.
        RunError: it is a corrupt artifact of a run.
    """
    if not is_folder(checkpoint, ModelError):
        raise ModelError(
            f"there is no checkpoint {checkpoint}: give a stage's 'training' folder, or the 'model' folder of a run."
        )
    if (checkpoint / RECORD).exists():
        record, fault = read_record(checkpoint), fault_of(checkpoint)
        if record is None or fault:
            raise RunError(f"{fault}: run 'everlearn doctor --cache' and 'everlearn resume' on its run folder.")
        return record.fingerprint
    parts = [checkpoint, *(checkpoint / name for name in ("adapter", "model", HEADS))]
    parts = [part for part in parts if is_folder(part, ModelError)]
    parts = [part for part in parts if any(file.suffix == ".safetensors" for file in inside(part, ModelError))]
    if not parts:
        raise ModelError(
            f"{checkpoint} holds no safetensors: give a stage's 'training' folder, or the 'model' folder of a run."
        )
    return fingerprint_of([content_hash(part, f"checkpoint {part}") for part in parts])


def state_in(checkpoint: Path, kind: Kind, fingerprint: str, base: str, stream: TaskStream) -> ModelState:
    """The model of a checkpoint folder, with its heads.

    Args:
        checkpoint: A stage's `training` folder, or what a run has handed back.
        kind: Of its weights, where it has any: heads may stand over the base.
        fingerprint: Of the folder.
        base: Fingerprint of the base.
        stream: Whose classes its heads must be of.

    Raises:
        ModelError: heads of other classes, or that were trained over other weights than those beside them.
    """
    own = (Part(checkpoint, kind),)
    if not is_folder(checkpoint / HEADS, ModelError):
        return ModelState(fingerprint, own)
    from everlearn.models.heads import check_weights, load_heads

    folders = [part for part in (checkpoint, checkpoint / kind) if is_folder(part, ModelError)]
    has_weights = any(
        file.suffix == ".safetensors" for part in folders for file in inside(part, ModelError) if "model" in file.name
    )
    check_weights(checkpoint, checkpoint if has_weights else None)
    load_heads(checkpoint, tasks=[(task.name, task.classes) for task in stream])
    beneath = fingerprint if has_weights else base
    return ModelState(fingerprint, (Part(checkpoint, "heads", HEADS), *(own if has_weights else ())), beneath=beneath)
