"""Conversations: lists of turns as ShareGPT, OpenAI, TRL, LLaMA-Factory, axolotl and Gemini write them.

Each answer of the assistant is one instance whose history are the turns before it. An answer that is marked as not
to be learnt (`weight: 0`, `train: false`) is history only. What a text cannot stand for (calls of tools, images) makes
a row that cannot be used: its answers rest on what the model would not see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from everlearn.data.bad_rows import RowFault
from everlearn.data.instance import Instance, Turn
from everlearn.data.row import Row, as_text, kind_of, text_of

CONVERSATIONS = ("messages", "conversations", "conversation", "contents")
"""Keys that hold a list of turns."""
_ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant",
    "chatbot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_TOOL_ROLES = ("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython")
_NOT_TEXT = frozenset(
    "tools functions tool_calls function_call tool_call_id images image videos video audios audio".split()
)  # beside a conversation or within a turn
_TRAINED = ("weight", "train", "training")
_CONTENTS = ("content", "value", "text", "parts")
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True)
class Frame:
    """What a row's instance takes from outside the row: its task, the task's definition, its id, names of tags."""

    task: str
    instruction: str
    id: str
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spoken:
    """A turn, and whether it is to be learnt where it is an answer."""

    turn: Turn
    learnt: bool = True


def turns_of(row: Row, value: object, key: str) -> list[Spoken]:
    """The turns of a list.

    Raises:
        RowFault: it is no list of turns, a role is unknown, or a turn holds what is no text.
    """
    if not isinstance(value, list):
        raise RowFault(f"{key!r} is {kind_of(value)}, not a list of turns")
    spoken = []
    for number, item in enumerate(value, 1):
        turn = row.inside(item, f"{key}[]", f"turn {number}")
        role = _role(turn.first("role", "from", "author"), number)
        refuse_what_is_no_text(turn, f"turn {number}")
        text = _content(turn, f"turn {number}")
        learnt = _is_learnt(turn, role, number)
        if role == "assistant" and not learnt:
            row.remarks.add("hold answers that are marked as not to be learnt and are shown as history only")
        spoken.append(Spoken(Turn(role, text), learnt))
    return spoken


def refuse_what_is_no_text(row: Row, where: str) -> None:
    """Refuses a row or turn with tools, images and the like, without which its answers mean something else."""
    found = next((key for key in row if key in _NOT_TEXT and row.holds(key)), None)
    if found:
        raise RowFault(f"{where} holds {found!r}: only text can be learnt")


def answers(spoken: Sequence[Spoken], frame: Frame, row: Row) -> list[Instance]:
    """One instance for each answer that is to be learnt.

    Raises:
        RowFault: the turns do not alternate, an answer is empty, or there is none.
    """
    instances: list[Instance] = []
    history: list[Turn] = []
    question: Turn | None = None
    count = 0
    for number, (turn, learnt) in enumerate(((one.turn, one.learnt) for one in spoken), 1):
        if turn.role == "system":
            if question or count:
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
            count += 1
            if learnt:
                name = f"{frame.id}.{count}" if count > 1 else frame.id
                given, told = frame.instruction, tuple(history)
                instances.append(Instance(given, question.content, turn.content, frame.task, id=name, history=told))
            history += [question, turn]
            question = None
    if not instances:
        raise RowFault("no output (no answer of the assistant" + (" that is to be learnt)" if count else ")"))
    if question:
        row.remarks.add("end with a question that has no answer, which is left out")
    return instances


def _role(value: object, number: int) -> str:
    role = value.lower() if isinstance(value, str) else ""
    if role in _TOOL_ROLES:
        raise RowFault(f"turn {number} has the role {value!r}: calls of tools and what they give cannot be learnt")
    if role not in _ROLES:
        raise RowFault(f"turn {number} has the role {value!r}; known: {', '.join(_ROLES)}")
    return _ROLES[role]


def _is_learnt(turn: Row, role: str, number: int) -> bool:
    """Whether a turn is to be learnt, as OpenAI's `weight` and axolotl's `train` say it."""
    if role != "assistant":  # never learnt: a mark that says so is kept, one that asks for more stays unread
        for key in _TRAINED:
            if not turn.peek(key):
                turn.get(key)
        return False
    marks = [turn.get(key) for key in _TRAINED if turn.holds(key)]
    if any(mark not in (0, 1) for mark in marks):
        raise RowFault(f"turn {number} has the weight {marks[0]!r}: an answer is learnt (1) or not (0)")
    return all(marks)


def _content(turn: Row, what: str) -> str:
    """The text of a message, also where it is a list of parts (`{"type": "text", "text": ...}`)."""
    key = next((key for key in _CONTENTS if turn.peek(key) is not None), _CONTENTS[0])
    value = turn.get(key)
    if not isinstance(value, list):
        return as_text(value, what)
    texts = []
    for item in value:
        part = turn.inside(item, f"{key}[]", f"a part of {what}")
        if part.get("type") not in (None, *_TEXT_PARTS) or part.get("text") is None:
            raise RowFault(f"{what!r} holds something else than text")
        texts.append(text_of(part, "text"))
    return "".join(texts)
