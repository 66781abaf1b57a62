"""The JSON files of a model folder, read with bounds: what a library would stumble over is said by file and key.

A value is refused here where libraries would take it and compute for hours, or without a word something else: numbers
that are no numbers, and counts of parts that nobody has built (a configuration with 10^9 layers fills the memory
while it is read).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from everlearn.errors import ModelError
from everlearn.models.faults import reason_of
from everlearn.ordinary_files import read_text, shown

MOST_BYTES = 512 << 20
"""Of one JSON file; the largest tokenizers have 40 MiB."""
MOST_LAYERS = 1024
"""Models with weights to load have up to 200; building so many on the meta device takes seconds."""
_MOST_PARTS = 1_000_000
_LAYERS = re.compile(r"(^|_)(layers?|blocks|depths?)$")
_PARTS = re.compile(r"layer_types|block|attention_types|label|experts|heads|groups?$|codebooks")
_RATES = re.compile(r"dropout$|_drop$|pdrop$")
_SMALL = re.compile(r"(^|_)eps(ilon)?$")
_MOST_EPSILON = 0.1
_MAY_BE_INFINITE = "limit"  # Mamba's time_step_limit ends at infinity


def read_object(file: Path, label: str) -> dict[str, Any]:
    """What a JSON file of a model folder holds.

    Args:
        file: Of the folder.
        label: How the sentence begins: the key of the recipe and the model.

    Raises:
        ModelError: no regular file, not UTF-8, not JSON, or no object.
    """
    try:
        text = read_text(file, ModelError, MOST_BYTES)
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from None
    try:
        value = json.loads(text)
        fault = "" if isinstance(value, dict) else f"it holds {_kind(value)}, not an object of keys and values"
    except (ValueError, RecursionError, MemoryError) as error:
        fault = f"it is not JSON: {reason_of(error)}"
    if fault:
        raise ModelError(f"{label}: {file.name} cannot be used ({fault}): download or save it again.")
    return value


def check_numbers(tree: dict[str, Any], file: str, label: str) -> None:
    """Refuses numbers of a configuration that no model can have, though libraries would compute with them.

    Args:
        tree: What the file holds.
        file: Its name.
        label: How the sentence begins: the key of the recipe and the model.

    Raises:
        ModelError: not a number, infinite, or more parts than any model has; names the key.
    """
    left: list[tuple[str, str, object]] = [("", "", tree)]
    while left:
        where, key, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{where}.{inner}".lstrip("."), inner, held) for inner, held in value.items()]
        elif isinstance(value, list):
            left += [(f"{where}[{at}]", key, held) for at, held in enumerate(value)]
        elif fault := _number_fault(key, value):
            raise ModelError(f"{label}: {file}: {shown(where)} {fault}: mend it.")


def _number_fault(key: str, value: object) -> str | None:
    if value is None and _RATES.search(key) and not key.startswith("classifier"):
        return "is null, and a rate of at least 0 and less than 1 belongs there"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if math.isnan(value) or (math.isinf(value) and _MAY_BE_INFINITE not in key):
        return f"is {value}, which is no finite number"
    if _RATES.search(key) and not 0 <= value < 1:
        return f"is {value}, not a rate of at least 0 and less than 1"
    if key.endswith("sliding_window") and value < 1:
        return f"is {value}, and a window has at least 1 token"
    if _SMALL.search(key) and not 0 <= value <= _MOST_EPSILON:
        return f"is {value}, not a small number of at least 0"
    most = MOST_LAYERS if _LAYERS.search(key) else _MOST_PARTS if _PARTS.search(key) else 1 << 63
    return f"is more than {most:,}, the most that is built" if isinstance(value, int) and value > most else None


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "null")
