"""Where the base model that ships with everlearn lies: two million parameters, made by `everlearn pretrain`.

The folder holds weights (safetensors, bf16), tokenizer and a card with what was measured, and loads with
`AutoModelForCausalLM` and `AutoTokenizer` like any other model folder.
"""

from __future__ import annotations

from pathlib import Path

from everlearn.errors import ModelError

_FOLDER = Path(__file__).parent / "embedded"


def embedded_base_path() -> Path:
    """The folder of the embedded base.

    Raises:
        ModelError: When the installation lacks the weights or the tokenizer.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (_FOLDER / name).is_file():
            raise ModelError(
                f"the embedded base lacks {name} in {_FOLDER}: reinstall everlearn,"
                f" or make the model again with `everlearn pretrain --out {_FOLDER}`"
            )
    return _FOLDER
