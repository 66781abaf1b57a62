"""Which model a checkpoint folder holds."""

from __future__ import annotations

from pathlib import Path

from everlearn.artifacts import RECORD, fault_of, read_record
from everlearn.data.instance import fingerprint_of
from everlearn.errors import ModelError, RunError
from everlearn.files import sha256_of


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """The training step's own fingerprint, or a hash of the weights for a folder from elsewhere.

    Raises:
        ModelError: there is no such folder, or it holds no weights.
        RunError: it is a corrupt artifact of a run.
    """
    if not checkpoint.is_dir():
        raise ModelError(
            f"there is no checkpoint {checkpoint}: give a stage's 'training' folder, or the 'model' folder of a run."
        )
    if (checkpoint / RECORD).exists():
        record, fault = read_record(checkpoint), fault_of(checkpoint)
        if record is None or fault:
            raise RunError(f"{fault}: run 'everlearn doctor --cache' and 'everlearn resume' on its run folder.")
        return record.fingerprint
    weights = sorted([*checkpoint.glob("*/*.safetensors"), *checkpoint.glob("*.safetensors")])
    if not weights:
        raise ModelError(
            f"{checkpoint} holds no safetensors: give a stage's 'training' folder, or the 'model' folder of a run."
        )
    return fingerprint_of([sha256_of(path) for path in weights])
