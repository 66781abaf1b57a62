"""The `chat` template: prompts as the tokenizer's own chat template renders them.

The template is rendered twice per row: once up to the point where the assistant speaks, once with the answer. What
the second has more than the first is the target, up to and including the token with which the template ends a turn
(`<|im_end|>`, `<|eot_id|>`, `</s>`), without the line break that may follow it. Where a template ends a turn with
no special token, or rewrites earlier text so that the first rendering is no beginning of the second, the target is
the answer and the end token. BOS is the template's business: none is added.

Thinking is switched off where a template knows the switch (`enable_thinking`), since the data has no thoughts.
A system message that a template refuses or leaves out goes in front of the first user message. A template that leaves
out anything else, fails, does not end or draws at random is refused; one that asks for the date gets always the same.

Text of the data never becomes a control token. A rendering that has other control tokens than the same conversation
of numbers has, or whose row names one, is made again with marks around what comes from the data, and encoded in
pieces (`control_tokens.py`); all others are encoded as a whole, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.data.chat_source import DATE_NOTE, REMEDY, asks_for_date, chat_source, described
from everlearn.data.control_tokens import control_ids, framed_ids, mentioned, plain_ids
from everlearn.data.exchanges import exchanges_of
from everlearn.data.instance import Instance
from everlearn.data.marked_text import Marks
from everlearn.data.template_trial import characters_allowed
from everlearn.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


class _Unusable(Exception):
    """What a template does wrong, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a template writes around the turns of a conversation, whatever they say.

    Attributes:
        prompt: Control tokens of the prompt.
        target: Those from there to the end of the answer.
    """

    prompt: list[int]
    target: list[int]


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: With a `chat_template`.

    Attributes:
        source: The template as it is rendered.
        notes: Sentences for the user.

    Raises:
        ModelError: the template cannot be used; says why and what to do.
    """

    name = "chat"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.source = chat_source(tokenizer)
        self.notes = (DATE_NOTE,) if asks_for_date(self.source) else ()
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        try:
            probe = _numbered(["user", "assistant"])
            after_answer = self._rendered(probe, False).rpartition(probe[-1]["content"])[2]
            self._end, self._after_end = _split_after_control_token(after_answer, tokenizer)
            self._shape(["user"])
        except _Unusable as fault:
            raise ModelError(f"{described(tokenizer)} {fault}: {REMEDY}.") from None
        try:
            self._shape(["system", "user"])
            self._shows_system = True
        except _Unusable:
            self._shows_system = False

    def check(self, rows: Sequence[Instance]) -> None:
        """Refuses rows that the template cannot be used with, from one of each shape and those with control tokens.

        Raises:
            DataError: names the row.
        """
        for row in rows:
            messages = self._messages(row)
            contents = [row.output, *(message["content"] for message in messages)]
            if tuple(_roles(messages)) not in self._shapes or mentioned(contents, self._tokenizer):
                self.prompt_ids(row, self._tokenizer)
                self.target_ids(row, self._tokenizer)

    def text(self, instance: Instance) -> str:
        """The rendered prompt, without BOS where the template writes one."""
        messages = self._messages(instance)
        with self._naming(messages):
            return self._rendered(messages, True).removeprefix(self._tokenizer.bos_token or "")

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The rendered prompt; one that is too long loses the end of its query, not the assistant's cue."""
        messages = self._messages(instance)
        ids = self._prompt_ids(messages)
        if max_tokens is None or len(ids) <= max_tokens:
            return ids
        query = plain_ids(messages[-1]["content"], tokenizer)
        while query and len(ids) > max_tokens:
            query = query[: max_tokens - len(ids)]
            messages[-1] = {"role": "user", "content": tokenizer.decode(query)}
            ids = self._prompt_ids(messages)
        return ids[:max_tokens]

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The answer and the end of the assistant's turn."""
        messages = [*self._messages(instance), {"role": "assistant", "content": instance.output}]
        with self._naming(messages[:-1]):
            tail = self._tail(messages)
            ids: list[int] | None
            if tail is None:
                ids = [*plain_ids(instance.output, tokenizer), self.end_ids(tokenizer)[0]]
            else:
                ids = self._ids(tail, messages, self._shape(_roles(messages[:-1])).target)
            if ids is None:
                marks = self._marks(messages)
                ids = self._ids_in_pieces(marks, self._tail(_marked(messages, marks)) or "")
        return ids[:max_tokens]

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The last token of an assistant's turn, and EOS."""
        ends = self._encoded(self._end)[-1:]
        return tuple(dict.fromkeys([*ends, tokenizer.eos_token_id]))

    def answer(self, completion: str) -> str:
        """All of it, but for white space around it."""
        return completion.strip()

    def _prompt_ids(self, messages: list[Message]) -> list[int]:
        with self._naming(messages):
            ids = self._ids(self._rendered(messages, True), messages, self._shape(_roles(messages)).prompt)
            if ids is None:
                marks = self._marks(messages)
                ids = self._ids_in_pieces(marks, self._rendered(_marked(messages, marks), True))
        return ids

    def _ids(self, rendered: str, messages: list[Message], expected: list[int]) -> list[int] | None:
        """Token ids of a rendering; None where some of the text of its messages may have become a control token."""
        if mentioned((message["content"] for message in messages), self._tokenizer):
            return None
        ids = self._encoded(rendered)
        return ids if self._controls_in(ids) == expected else None

    def _marks(self, messages: list[Message]) -> Marks:
        return Marks((message["content"] for message in messages), self.source, self._tokenizer)

    def _ids_in_pieces(self, marks: Marks, rendered: str) -> list[int]:
        pieces = marks.pieces(rendered)
        if pieces is None:
            raise _Unusable("takes text apart that names control tokens, so that it cannot be told from them")
        return framed_ids(pieces, self._tokenizer)

    def _shape(self, roles: list[str]) -> _Shape:
        """The shape of conversations in which these speak before the answer; found out once."""
        known = self._shapes.get(tuple(roles))
        if known is None:
            messages = _numbered([*roles, "assistant"])
            prompt, whole = self._rendered(messages[:-1], True), self._rendered(messages, False)
            for at, message in enumerate(messages):
                if message["content"] not in (prompt if at < len(roles) else whole):
                    what = {len(roles): "the answer", len(roles) - 1: "the question"}.get(at, f"turn {at + 1}")
                    raise _Unusable(f"does not show {what} of a conversation of {len(roles)} turns")
            tail = self._tail(messages) or ""
            known = _Shape(self._controls_in(self._encoded(prompt)), self._controls_in(self._encoded(tail)))
            self._shapes[tuple(roles)] = known
        return known

    def _controls_in(self, ids: list[int]) -> list[int]:
        controls = control_ids(self._tokenizer)
        return [at for at in ids if at in controls]

    def _tail(self, messages: list[Message]) -> str | None:
        """What the template writes from the prompt to the answer's end; None where it does not end or go on there."""
        prompt, whole = self._rendered(messages[:-1], True), self._rendered(messages, False)
        if not (whole.startswith(prompt) and self._end):
            return None
        return whole[len(prompt) :].removesuffix(self._after_end)

    def _messages(self, instance: Instance) -> list[Message]:
        messages = conversation(instance)
        if self._shows_system or messages[0]["role"] != "system":
            return messages
        return _system_in_first_question(messages)

    def _rendered(self, messages: list[Message], is_prompt: bool) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=is_prompt,
                enable_thinking=False,
            )
        except Exception as error:  # a template is a foreign program
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _Unusable(f"refuses a conversation of {len(messages)} turns ({reason})") from None
        allowed = characters_allowed(sum(len(message["content"]) for message in messages))
        if len(rendered) > allowed:
            raise _Unusable(f"makes more than {allowed:,} characters of a conversation")
        return str(rendered)

    def _encoded(self, rendered: str) -> list[int]:
        """Token ids of a text in which all control tokens count as such."""
        return list(self._tokenizer.encode(rendered, add_special_tokens=False, verbose=False))

    @contextmanager
    def _naming(self, messages: list[Message]) -> Iterator[None]:
        """Says which row a template cannot be used with."""
        try:
            yield
        except _Unusable as fault:
            raise DataError(
                f"{described(self._tokenizer)} {fault}: mend the row that begins {messages[-1]['content'][:60]!r}, or "
                f"{REMEDY}."
            ) from None


def conversation(instance: Instance) -> list[Message]:
    """The messages of an instance, its question last."""
    system, exchanges = exchanges_of(instance.history, instance.query)
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        if exchange.answer is not None:
            messages.append({"role": "assistant", "content": exchange.answer})
    return messages


def _roles(messages: list[Message]) -> list[str]:
    return [message["role"] for message in messages]


def _numbered(roles: list[str]) -> list[Message]:
    """A conversation of numbers that no template writes by itself, nor in another case."""
    return [{"role": role, "content": f"7023190{at:05}"} for at, role in enumerate(roles)]


def _marked(messages: list[Message], marks: Marks) -> list[Message]:
    return [{**message, "content": marks.around(message["content"])} for message in messages]


def _system_in_first_question(messages: list[Message]) -> list[Message]:
    system, question, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{question['content']}"}, *rest]


def _split_after_control_token(tail: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Splits what a template writes after an answer behind its last control token; ("", tail) without one."""
    controls = {str(token) for token in tokenizer.added_tokens_decoder.values()} | {tokenizer.eos_token}
    ends = [tail.rfind(token) + len(token) for token in controls if token.strip() and token in tail]
    at = max(ends, default=0)
    return tail[:at], tail[at:]
