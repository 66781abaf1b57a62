"""The shapes that rows of instruction data come in, and how each becomes instances.

| name | row |
| --- | --- |
| `superni` | SSR's rows: `full_prompt`, `input`, `output`; the instruction is what stands before the input |
| `sharegpt` | `conversations`: a list of `from` / `value` |
| `messages` | `messages` (or `conversation`, `contents`): a list of `role` / `content` (or `parts`) |
| `prompt_completion` | `prompt` and `completion` (or `response`, `chosen`): texts, or lists of messages |
| `words` | `tokens` (or `words`) and `ner_tags` (or `tags`): a list of words and one of their BIO tags |
| `alpaca` | `instruction`, `input` (may be empty), `output` (or `chosen`) |
| `translation` | `source_text`, `target_text`, `source_lang`, `target_lang`; of a chain `input` and `output` |
| `columns` | `instruction`, `input`, `output`, `system`, `history`, `id` under names that the recipe gives |

`system` beside any of them but the first is a system message, `history` (pairs of question and answer) are earlier
turns. An output may be a list of texts, also as SQuAD's `{"text": [...]}`: the first is the answer, the others are
further references. Of a preference the chosen answer is learnt; a row whose answer is marked as unwanted (`kto_tag` or
TRL's `label` is false) cannot be used, nor one that rests on tools or images. In a conversation the question is an
instance's `input`, so that `instruction` stays what all rows of a task share. Languages are given by code or by their
English names; the `output` of a chain holds what is thought and the answer between tags (`everlearn.data.walks`); in
other rows with one answer what is thought may stand under `walk`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from sys import intern

from everlearn.data.bad_rows import RowFault
from everlearn.data.instance import Instance, Turn
from everlearn.data.row import Row, as_text, kind_of, text_of
from everlearn.data.translation import asked, language_name
from everlearn.data.turns import CONVERSATIONS, Frame, Spoken, answers, refuse_what_is_no_text, turns_of
from everlearn.data.walks import answer_in, is_well_formed, walk_in
from everlearn.data.words import fault_of

Parser = Callable[[Row, Frame], list[Instance]]

_COMPLETIONS = ("completion", "response", "chosen")
_WORDS, _TAGS = ("tokens", "words"), ("ner_tags", "tags")


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
    """A row with `instruction`, `input` and `output`; also Alpaca's with `system` and `history`."""
    _refuse_unwanted(row, "kto_tag")
    key = "chosen" if not row.holds("output") and row.holds("chosen") else "output"
    history = _before(row)
    return _one(row, key, text_of(row, "instruction") or frame.instruction, text_of(row, "input"), frame, history)


def parse_alpaca(row: Row, frame: Frame) -> list[Instance]:
    """A row of Alpaca's, which may rest on tools or images as LLaMA-Factory writes it."""
    refuse_what_is_no_text(row, "it")
    return parse_columns(row, frame)


def parse_prompt_completion(row: Row, frame: Frame) -> list[Instance]:
    """A row with `prompt` and `completion`; with lists of messages, the answers of the completion are instances."""
    refuse_what_is_no_text(row, "it")
    _refuse_unwanted(row, "label", "kto_tag")
    key = next((key for key in _COMPLETIONS if row.holds(key)), "completion" if "completion" in row else "response")
    prompt, completion = row.get("prompt"), row.get(key)
    if not isinstance(prompt, list) and not _holds_messages(completion):
        return _one(row, key, frame.instruction, text_of(row, "prompt"), frame, _before(row))
    if isinstance(prompt, list):
        head = turns_of(row, prompt, "prompt")
    else:
        head = [Spoken(Turn("user", text))] if (text := text_of(row, "prompt")) else []
    tail = (
        turns_of(row, completion, key)
        if isinstance(completion, list)
        else [Spoken(Turn("assistant", text_of(row, key)))]
    )
    if [one.turn for one in tail[: len(head)]] == [one.turn for one in head]:  # a chosen conversation from its start
        tail = tail[len(head) :]
    if key == "chosen":
        tail = [*(replace(one, learnt=False) for one in tail[:-1]), *tail[-1:]]
    shown = [Spoken(turn, learnt=False) for turn in (*_before(row), *(one.turn for one in head))]
    return answers([*shown, *tail], frame, row)


def parse_translation(row: Row, frame: Frame) -> list[Instance]:
    """A row of R1-T1's corpus, or of its chains; what is thought is taken as it is, the reference is the answer."""
    source = as_text(row.first("source_text", "input"), "source_text")
    names = []
    for key in ("source_lang", "target_lang"):
        if not (language := text_of(row, key).strip()):
            raise RowFault(f"no language under {key!r}")
        try:
            names.append(language_name(language))
        except ValueError as fault:
            raise RowFault(f"{key}: {fault}") from None
    written = text_of(row, "output")
    answer, walk = answer_in(written), walk_in(written) if is_well_formed(written) else None
    reference = text_of(row, "target_text") or (written if answer is None else answer)
    if not reference.strip():
        raise RowFault("no reference (nothing under 'target_text')")
    if not source.strip():
        raise RowFault("no source (nothing under 'source_text')")
    if answer is not None and not walk:
        row.remarks.add(
            "have tags around an answer, but not each of the four once and in order: their walk is left out"
        )
    if walk and (answer or "").split() != reference.split():
        row.remarks.add("have a walk to another answer than the reference, which is trained in its place")
    instruction = intern(asked(*names))
    return [Instance(instruction, source, reference, frame.task, id=frame.id, walk=walk or "")]


def parse_words(row: Row, frame: Frame) -> list[Instance]:
    """A row of words with a BIO tag each; tags that are numbers get their names from outside the row."""
    lists = [(key, row.get(key)) for key in (_held(row, _WORDS), _held(row, _TAGS))]
    if lists[1][1] is None and isinstance(row.peek("output"), str):  # as everlearn writes such rows
        lists[1] = ("output", text_of(row, "output").split(" "))
        row.get("input")
    for key, value in lists:
        if not isinstance(value, list):
            raise RowFault(f"{key!r} is {kind_of(value)}, not a list" if value is not None else f"no {key!r}")
    (of_words, words), (of_tags, tags) = lists
    assert isinstance(words, list) and isinstance(tags, list), "just looked"  # noqa: PT018
    if len(words) != len(tags) or not words:
        raise RowFault(f"{len(words)} words in {of_words!r} and {len(tags)} tags in {of_tags!r}: each word has one")
    texts = [as_text(word, of_words) for word in words]
    if blank := next((number for number, text in enumerate(texts, 1) if not text.strip()), None):
        raise RowFault(f"word {blank} is empty")
    named = [frame.names.get(str(tag), tag) for tag in tags]
    for number, tag in enumerate(named, 1):
        if not isinstance(tag, str):
            raise RowFault(f"tag {number} is {str(tag)[:40]}, not a text such as B-PER (label_names can name numbers)")
    if fault := fault_of(named):
        raise RowFault(fault)
    return [Instance("", " ".join(texts), " ".join(named), frame.task, id=frame.id, words=(*texts,))]


def parse_conversation(row: Row, frame: Frame) -> list[Instance]:
    """A conversation under `conversations` or `messages`; a `system` beside it is its first turn."""
    refuse_what_is_no_text(row, "it")
    _refuse_unwanted(row, "kto_tag")
    keys = [key for key in CONVERSATIONS if key in row]
    if not keys:
        raise RowFault("no conversation (neither 'messages' nor 'conversations')")
    key = next((key for key in keys if row.holds(key)), keys[0])
    spoken = [*(Spoken(turn, learnt=False) for turn in _before(row)), *turns_of(row, row.get(key), key)]
    if isinstance(row.peek("chosen"), Mapping):  # a preference of LLaMA-Factory: the conversation ends in a question
        chosen = turns_of(row, [row["chosen"]], "chosen")
        spoken = [*(replace(one, learnt=False) for one in spoken), *chosen]
    return answers(spoken, frame, row)


PARSERS: dict[str, Parser] = {
    "superni": parse_superni,
    "sharegpt": parse_conversation,
    "messages": parse_conversation,
    "prompt_completion": parse_prompt_completion,
    "words": parse_words,
    "alpaca": parse_alpaca,
    "translation": parse_translation,
    "columns": parse_columns,
}


def detect_shape(row: Mapping[str, object]) -> str | None:
    """Name of the shape that a row has by its keys, or None."""
    if {"source_lang", "target_lang"} <= set(row) and ({"source_text", "input"} & set(row)):
        return "translation"
    if "full_prompt" in row and "output" in row:
        return "superni"
    if isinstance(row.get(_held(row, _WORDS)), list) and (
        isinstance(row.get(_held(row, _TAGS)), list) or isinstance(row.get("output"), str)
    ):
        return "words"
    if isinstance(row.get("conversations"), list):
        return "sharegpt"
    if any(isinstance(row.get(key), list) for key in CONVERSATIONS):
        return "messages"
    if ("prompt" in row and any(key in row for key in _COMPLETIONS)) or _holds_messages(row.get("chosen")):
        return "prompt_completion"
    if "instruction" in row and ("output" in row or "chosen" in row):
        return "alpaca"
    return "columns" if "input" in row and ("output" in row or "chosen" in row) else None


def _held(row: Mapping[str, object], keys: tuple[str, ...]) -> str:
    """The first of some keys that a row has; the first of all where it has none."""
    return next((key for key in keys if row.get(key) is not None), keys[0])


def _one(
    row: Row, key: str, instruction: str, given: str, frame: Frame, history: tuple[Turn, ...] = ()
) -> list[Instance]:
    """The only instance of a row, its output under `key`."""
    value = row.get(key)
    if value is None:
        raise RowFault("no output" if key == "output" else f"no output (no {key!r})")
    texts = _outputs(row, value, key)
    if not texts or not texts[0] or texts[0].isspace():
        raise RowFault("empty output")
    if not (instruction and not instruction.isspace()) and not (given and not given.isspace()):
        raise RowFault("neither instruction nor input")
    further = tuple(filter(None, texts[1:]))
    shared = intern(instruction)  # one for all rows that have it
    return [
        Instance(
            shared,
            given,
            texts[0],
            frame.task,
            id=frame.id,
            references=further,
            history=history,
            walk=text_of(row, "walk"),
        )
    ]


def _outputs(row: Row, value: object, key: str) -> list[str]:
    """The accepted answers: one text, a list of texts, or answers with their places as SQuAD has them."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = row.inside(value, key, key).get("text")
    if not isinstance(value, list):
        return [as_text(value, key)]
    items = [
        row.inside(item, f"{key}[]", key)["text"] if isinstance(item, Mapping) and "text" in item else item
        for item in value
    ]
    return [as_text(item, key) for item in items]


def _before(row: Row) -> tuple[Turn, ...]:
    """The turns that `system` and `history` put before a row's own."""
    system = row.first("system", "system_prompt", "systemInstruction", "system_instruction")
    if isinstance(system, Mapping):  # Gemini's: {"parts": [{"text": ...}]}
        system = "".join(one.turn.content for one in turns_of(row, [{"role": "system", **system}], "system"))
    turns = [Turn("system", text)] if (text := as_text(system, "system")).strip() else []
    history = row.peek("history")
    if not isinstance(history, list):
        return tuple(turns)
    row.get("history")
    if _holds_messages(history):
        return (*turns, *(one.turn for one in turns_of(row, history, "history")))
    for number, pair in enumerate(history, 1):
        texts = [as_text(text, "history") for text in pair] if isinstance(pair, list) else []
        if len(texts) != 2 or not all(text.strip() for text in texts):
            raise RowFault(f"item {number} of the history is not a pair of question and answer")
        turns += [Turn("user", texts[0]), Turn("assistant", texts[1])]
    return tuple(turns)


def _refuse_unwanted(row: Row, *keys: str) -> None:
    """Refuses an answer that a row of feedback marks as unwanted; a mark that is no truth value stays unread."""
    for key in keys:
        mark = str(row.peek(key)).lower()
        if mark == "false":
            raise RowFault(f"its answer is marked as unwanted ({key!r} is false)")
        if mark == "true":
            row.get(key)


def _holds_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
