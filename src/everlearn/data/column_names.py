"""Which columns of a table are the question and the answer, told by their usual names."""

from __future__ import annotations

import re
from collections.abc import Mapping

_INPUTS = (
    "input text sentence question query prompt document article passage review utterance content source context "
    "premise"
).split()
_JOINED = (
    "premise hypothesis sentence question query document doc article passage paragraph context story claim evidence "
    "statement reference_text dialogue ctx goal word title headline subject body content description abstract"
).split()  # where two of them are there, both are part of what is asked
_FURTHER = ("title", "headline", "subject", "word")  # part of it only beside a text that is no question
_NUMBERED = re.compile(
    r"(sentence|question|text|passage|document|doc|statement|query|claim|choice|option|sol|solution|ending|utterance)"
    r"[_ ]?(\d|a|b)"
)
_OUTPUTS = (
    "output label answer target completion response summary translation intent category class label_text sentiment "
    "highlights tgt answers chosen generation"
).split()
_LABELS = ("label", "class", "category", "label_text", "sentiment", "intent")
_SYSTEMS = ("system", "system_prompt")


def guess_columns(row: Mapping[str, object]) -> dict[str, str | list[str]] | None:
    """A mapping of columns that fits the usual names in a row (`text` and `label`), or None.

    The two texts of a pair (premise and hypothesis, question and context) are both taken, in the order of the columns.
    """
    known = {name.lower(): name for name in row}
    output = next((known[name] for name in _OUTPUTS if name in known), None)
    instruction = known.get("instruction")
    asked = _asked(known, row, output)
    if output is None or not (instruction or asked):
        return None
    mapping: dict[str, str | list[str]] = {"instruction": instruction} if instruction else {}
    if asked:
        mapping["input"] = asked if len(asked) > 1 else asked[0]
    system = next((known[name] for name in _SYSTEMS if name in known), None)
    return {**mapping, "output": output, **({"system": system} if system else {})}


def _asked(known: Mapping[str, str], row: Mapping[str, object], output: str | None) -> list[str]:
    """The columns of what is asked: those of a pair, or the one that is most likely."""
    texts = [name for name, key in known.items() if key != output and isinstance(row[key], str | int | float | None)]
    joined = [name for name in texts if name in _JOINED or _NUMBERED.fullmatch(name)]
    if known.get("answer") not in (None, output) and output is not None and output.lower() in _LABELS:
        joined = [name for name in texts if name in joined or name == "answer"]  # whether an answer is right
    if any(name in ("question", "query") for name in joined):
        joined = [name for name in joined if name not in _FURTHER]  # SQuAD's title is no part of the question
    elif joined and all(name in _FURTHER for name in joined):
        text = next((name for name in _INPUTS if name in texts), None)
        joined = [name for name in texts if name in joined or name == text]
    if len(joined) > 1:
        return [known[name] for name in joined]
    return next(([known[name]] for name in _INPUTS if name in texts), [known[name] for name in joined])
