"""Which model a checkpoint folder holds."""

from __future__ import annotations

from pathlib import Path

from everlearn.data.instance import fingerprint_of
from everlearn.errors import ModelError
from everlearn.files import read_json
from everlearn.runs.store import RECORD, sha256_of


def checkpoint_fingerprint(checkpoint: Path) -> str:
    """The training step's own fingerprint, or a hash of the weights for a folder from elsewhere.

    Raises:
        ModelError: the folder holds no weights.
    """
    record = checkpoint / RECORD
    if record.exists():
        value = read_json(record)
        assert isinstance(value, dict), "an artifact record is a mapping"
        return str(value["fingerprint"])
    weights = sorted(checkpoint.glob("*/*.safetensors"))
    if not weights:
        raise ModelError(
            f"{checkpoint} holds no adapter/ or model/ folder with safetensors: give a stage's 'training' folder."
        )
    return fingerprint_of([sha256_of(path) for path in weights])
