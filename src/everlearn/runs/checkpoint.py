"""Which model a checkpoint folder holds."""

from __future__ import annotations

from pathlib import Path

from everlearn.artifacts import RECORD, fault_of, read_record
from everlearn.errors import ModelError, RunError
from everlearn.fingerprints import fingerprint_of
from everlearn.models.folders import content_hash
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
    parts = [
        part for part in (checkpoint, checkpoint / "adapter", checkpoint / "model") if is_folder(part, ModelError)
    ]
    parts = [checkpoint, checkpoint / "adapter", checkpoint / "model"]
    parts = [part for part in parts if is_folder(part, ModelError)]
    parts = [part for part in parts if any(file.suffix == ".safetensors" for file in inside(part, ModelError))]
    if not parts:
        raise ModelError(
            f"{checkpoint} holds no safetensors: give a stage's 'training' folder, or the 'model' folder of a run."
        )
    return fingerprint_of([content_hash(part, f"checkpoint {part}") for part in parts])
