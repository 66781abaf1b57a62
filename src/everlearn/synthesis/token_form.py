"""Rows with tokens of their own, as LAMOL was published: one ends a question, one asks for a row.

    question and answer   question ANSWER | answer EOS          (the loss is on what stands behind the line)
    the whole row         ASKING | question ANSWER answer EOS

Source: LAMOL's published code (`QADataset`; read), where a question is context and question; here it is a row's text
as everywhere in everlearn, instruction before input, and what is too long loses the end of its input as the code's
loses that of its context. The code's prompts at test time are cut without regard to an answer, so that a long one is
longer than in training; here both are cut to the same length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import plain_ids
from everlearn.data.prompts import VanillaTemplate, bos_ids
from everlearn.synthesis.written_form import parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Instance
    from everlearn.generation.protocol import Completion

ANSWER, ASKING = "__ans__", "__gen__"


def asking_token(task: str) -> str:
    """The token that asks for a row of a task."""
    return f"__{task}__"


def question_ids(
    before: Sequence[int], context: Sequence[int], after: Sequence[int], mark: int, room: int
) -> list[int] | None:
    """A question and the mark behind it; its context loses its end where all would be longer than `room`.

    Returns:
        None where it is too long without any context.
    """
    left = room - len(before) - len(after) - 1
    return None if left < 0 else [*before, *context[:left], *after, mark]


def question_and_answer_ids(
    ids: Sequence[int], mark: int, end: int, separator: int | None = None
) -> tuple[list[int], list[int]] | None:
    """The two parts of a row that was written, without what asked for it.

    Args:
        ids: What was written.
        mark: Stands between the parts.
        end: Is taken out of the answer.
        separator: Stands within a question, if any does.

    Returns:
        None where the mark, or the separator, is not in it exactly once.
    """
    before, rest = [], list(ids)
    if separator is not None:
        if rest.count(separator) != 1:
            return None
        before, rest = rest[: rest.index(separator) + 1], rest[rest.index(separator) + 1 :]
    if rest.count(mark) != 1:
        return None
    at = rest.index(mark)
    return before + rest[:at], [one for one in rest[at + 1 :] if one != end]


class TokenTemplate(VanillaTemplate):
    """The query and a token that asks for its answer."""

    name = f"query and {ANSWER} behind it"
    handed_frame = f"message['content'] + '{ANSWER}'"

    def frame(self, question: str, system: str | None, is_first: bool) -> str:
        """The question as it is, then the token."""
        return super().frame(question, system, is_first) + ANSWER

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """See `PromptTemplate.prompt_ids`; what is cut is the end of the last question's input.

        Where all before that is too long by itself, its end is cut as well (the published code fails there); the
        token that asks for the answer always stands last.
        """
        ids: list[int] = []
        *earlier, last = self._framed(instance)
        for exchange in earlier:
            ids += [*bos_ids(tokenizer), *_marked(exchange.question, tokenizer)]
            ids += [*plain_ids(exchange.answer or "", tokenizer), tokenizer.eos_token_id]
        ids += bos_ids(tokenizer)
        whole = [*ids, *_marked(last.question, tokenizer)]
        if max_tokens is None or len(whole) <= max_tokens:
            return whole
        context = instance.input if instance.instruction else instance.query
        before = last.question.removesuffix(ANSWER).removesuffix(context)
        parts = [plain_ids(text, tokenizer) for text in (before, context)]
        mark = _id(ANSWER, tokenizer)
        cut = question_ids([*ids, *parts[0]], parts[1], (), mark, max_tokens)
        return [*whole[: max_tokens - 1], mark] if cut is None else cut


@dataclass(frozen=True)
class TokenForm:
    """How whole rows are worded: a template for a group of rows (see `PromptTemplate`).

    Attributes:
        inner: The run's template.
        asks: The token that asks for a row, by task.
        limit: Most tokens of a row.
    """

    inner: TokenTemplate
    asks: Mapping[str, str]
    limit: int

    notes = ()

    @property
    def name(self) -> str:
        """All that the ids of a row depend on beside the row."""
        return f"written {[self.inner.name, dict(self.asks), self.limit]}"

    def check(self, rows: Sequence[Instance]) -> None:
        """Takes any row."""

    def text(self, instance: Instance) -> str:
        """What asks for a row of the instance's task."""
        return self.asks[instance.task]

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """What asks for a row of the instance's task."""
        return [*bos_ids(tokenizer), _id(self.asks[instance.task], tokenizer)]

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The row and the token that ends it, cut to `limit`; for a row that `fits`."""
        answer = [*plain_ids(instance.output, tokenizer), tokenizer.eos_token_id]
        before, context = parts_of(instance)
        room = self.limit - len(self.prompt_ids(instance, tokenizer)) - len(answer)
        mark = _id(ANSWER, tokenizer)
        whole = plain_ids(before + context, tokenizer)
        if len(whole) < room:
            return [*whole, mark, *answer]
        parts = [plain_ids(text, tokenizer) for text in (before, context)]
        return [*(question_ids(parts[0], parts[1], (), mark, room) or [*parts[0], mark]), *answer]

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """EOS alone."""
        return (tokenizer.eos_token_id,)

    def answer(self, completion: str) -> str:
        """All of it: question and answer are read from tokens or lines (`read`)."""
        return completion

    def fits(self, instance: Instance, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the row has no more than `limit` tokens once its context is cut."""
        ids = self.target_ids(instance, tokenizer)
        return len(self.prompt_ids(instance, tokenizer)) + len(ids) <= self.limit

    def read(self, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
        """Question and answer of what was written; None: the token between them is not in it exactly once."""
        found = question_and_answer_ids(completion.token_ids, _id(ANSWER, tokenizer), int(tokenizer.eos_token_id))
        if found is None:
            return None
        question, answer = (tokenizer.decode(ids, skip_special_tokens=True) for ids in found)
        return question, answer


def _id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _marked(question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [*plain_ids(question.removesuffix(ANSWER), tokenizer), _id(ANSWER, tokenizer)]
