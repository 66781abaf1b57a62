"""The shapes that rows of instruction data come in, and how each becomes instances.

| name | row |
| --- | --- |
| `superni` | SSR's rows: `full_prompt`, `input`, `output`; the instruction is what stands before the input |
| `sharegpt` | `conversations`: a list of `from` / `value` |
| `messages` | `messages`: a list of `role` / `content` |
| `prompt_completion` | `prompt` and `completion` (or `response`): texts, or lists of messages |
| `alpaca` | `instruction`, `input` (may be empty), `output` |
| `columns` | `instruction`, `input`, `output`, `id` under names that the recipe gives |

Texts are taken verbatim; numbers and truth values count as texts. An output may be a list of texts: the first is the
answer, the others are further references. In a conversation each answer of the assistant is one instance whose
history are the turns before it; the question is its `input`, so that `instruction` stays what all rows of a task
share. A last question without an answer is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from everlearn.data.bad_rows import RowFault
from everlearn.data.instance import Instance, Turn

Row = Mapping[str, object]

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system",
}  # fmt: skip
_INPUT_NAMES = (
    "input text sentence question query prompt document article passage review utterance content source context "
    "premise"
).split()
_OUTPUT_NAMES = (
    "output label answer target completion response summary translation intent category class label_text sentiment "
    "highlights tgt"
).split()


@dataclass(frozen=True, slots=True)
class Frame:
    """What a row's instance takes from outside the row: its task, the task's definition, its id."""

    task: str
    instruction: str
    id: str


Parser = Callable[[Row, Frame], list[Instance]]


def parse_superni(row: Row, frame: Frame) -> list[Instance]:
    """A row of SSR's data files.

    The instruction is what stands in `full_prompt` before `input`. A row without `input`, or whose `full_prompt`
    does not hold it, is split at the first blank line.
    """
    prompt, given = text_of(row, "full_prompt"), text_of(row, "input")
    at = len(prompt) - len(given) if prompt.endswith(given) else prompt.rfind(given)
    if given and at >= 0:
        instruction, given = prompt[:at].rstrip(), prompt[at:]
    elif prompt:
        head, blank_line, tail = prompt.partition("\n\n")
        instruction, given = (head, tail) if blank_line else ("", prompt)
    else:
        instruction = ""
    return _one(row, "output", instruction or frame.instruction, given, frame)


def parse_columns(row: Row, frame: Frame) -> list[Instance]:
    """A row with `instruction`, `input` and `output`; also Alpaca's."""
    return _one(row, "output", text_of(row, "instruction") or frame.instruction, text_of(row, "input"), frame)


def parse_prompt_completion(row: Row, frame: Frame) -> list[Instance]:
    """A row with `prompt` and `completion`; with lists of messages, the last answer alone is an instance."""
    key = "completion" if "completion" in row else "response"
    prompt, completion = row.get("prompt"), row.get(key)
    if not isinstance(prompt, list) and not _holds_messages(completion):
        return _one(row, key, frame.instruction, text_of(row, "prompt"), frame)
    turns = [
        *(_turns(prompt, "prompt") if isinstance(prompt, list) else [Turn("user", text_of(row, "prompt"))]),
        *(_turns(completion, key) if isinstance(completion, list) else [Turn("assistant", text_of(row, key))]),
    ]
    return _answers(turns, frame)[-1:]


def parse_conversation(row: Row, frame: Frame) -> list[Instance]:
    """A conversation under `conversations` or `messages`; a `system` beside it is its first turn."""
    key = "messages" if "messages" in row else "conversations"
    if key not in row:
        raise RowFault("no conversation (neither 'messages' nor 'conversations')")
    system = text_of(row, "system")
    return _answers([*([Turn("system", system)] if system else []), *_turns(row[key], key)], frame)


PARSERS: dict[str, Parser] = {
    "superni": parse_superni,
    "sharegpt": parse_conversation,
    "messages": parse_conversation,
    "prompt_completion": parse_prompt_completion,
    "alpaca": parse_columns,
    "columns": parse_columns,
}


def detect_shape(row: Row) -> str | None:
    """Name of the shape that a row has by its keys, or None."""
    if "full_prompt" in row and "output" in row:
        return "superni"
    if isinstance(row.get("conversations"), list):
        return "sharegpt"
    if isinstance(row.get("messages"), list):
        return "messages"
    if "prompt" in row and ("completion" in row or "response" in row):
        return "prompt_completion"
    if "instruction" in row and "output" in row:
        return "alpaca"
    return "columns" if "input" in row and "output" in row else None


def guess_columns(names: Iterable[str]) -> dict[str, str] | None:
    """A mapping that fits usual names of columns (`text` and `label`), or None."""
    known = {name.lower(): name for name in names}
    usual = {"instruction": ["instruction"], "input": _INPUT_NAMES, "output": _OUTPUT_NAMES}
    found = {key: next((known[name] for name in likely if name in known), "") for key, likely in usual.items()}
    mapping = {key: name for key, name in found.items() if name}
    return mapping if "output" in mapping and len(mapping) > 1 else None


def text_of(row: Row, key: str) -> str:
    """The text under a key; empty when the key is missing or null.

    Raises:
        RowFault: the value is neither text nor a number.
    """
    return _as_text(row.get(key), key)


def _as_text(value: object, what: str) -> str:
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise RowFault(f"{what!r} holds half a surrogate pair, which is no text") from None
        return value
    if value is None or (isinstance(value, float) and value != value):  # null, or a table's NaN
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    raise RowFault(f"{what!r} is {_kind(value)}, not text")


def _kind(value: object) -> str:
    kinds = {"list": "a list", "dict": "an object", "bytes": "binary data"}
    name = type(value).__name__
    return kinds.get(name, f"of type {name}")


def _one(row: Row, key: str, instruction: str, given: str, frame: Frame) -> list[Instance]:
    """The only instance of a row, its output under `key`."""
    value = row.get(key)
    if value is None:
        raise RowFault("no output" if key == "output" else f"no output (no {key!r})")
    texts = [_as_text(item, key) for item in value] if isinstance(value, list) else [_as_text(value, key)]
    if not texts or not texts[0] or texts[0].isspace():
        raise RowFault("empty output")
    if not (instruction and not instruction.isspace()) and not (given and not given.isspace()):
        raise RowFault("neither instruction nor input")
    return [Instance(instruction, given, texts[0], frame.task, id=frame.id, references=tuple(filter(None, texts[1:])))]


def _holds_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _turns(value: object, key: str) -> list[Turn]:
    if not isinstance(value, list):
        raise RowFault(f"{key!r} is {_kind(value)}, not a list of turns")
    turns = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise RowFault(f"turn {number} is {_kind(item)}, not an object")
        role = item.get("role", item.get("from"))
        if not isinstance(role, str) or role not in _ROLES:
            raise RowFault(f"turn {number} has the role {role!r}; known: {', '.join(_ROLES)}")
        content = item.get("content", item.get("value"))
        turns.append(Turn(_ROLES[role], _content(content, f"turn {number}")))
    return turns


def _content(value: object, what: str) -> str:
    """The text of a message, also where it is a list of parts (`{"type": "text", "text": ...}`)."""
    if not isinstance(value, list):
        return _as_text(value, what)
    parts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            raise RowFault(f"{what!r} holds something else than text")
        parts.append(text_of(part, "text"))
    return "".join(parts)


def _answers(turns: list[Turn], frame: Frame) -> list[Instance]:
    """One instance for each answer of the assistant."""
    instances: list[Instance] = []
    history: list[Turn] = []
    question: Turn | None = None
    for number, turn in enumerate(turns, 1):
        if turn.role == "system":
            if question or instances:
                raise RowFault(f"turn {number} is a system message behind the beginning")
            history.append(turn)
        elif turn.role == "user":
            if question:
                raise RowFault(f"turn {number} is the second question in a row")
            question = turn
        else:
            if question is None or not question.content.strip():
                raise RowFault(f"turn {number} is an answer without a question")
            if not turn.content.strip():
                raise RowFault(f"empty output (turn {number})")
            name = f"{frame.id}.{len(instances) + 1}" if instances else frame.id
            instances.append(
                Instance(
                    frame.instruction, question.content, turn.content, frame.task, id=name, history=tuple(history)
                )
            )
            history += [question, turn]
            question = None
    if not instances:
        raise RowFault("no output (no answer of the assistant)")
    return instances
