"""Rows as a model writes them whole: question, mark and answer behind a line that asks for a row of a task.

    prompt   the line, worded by the run's template, so that it begins as every prompt does
    target   question, the mark on a line of its own, answer, end token

A text is a row if the mark stands in it exactly once. Source: the layout of LAMOL (arXiv 1909.03329 and its published
code: generation token, context, question, answer mark, answer, end token), in plain text, since an adapter does not
train the embeddings of new tokens (chosen here). As published, what is too long loses the end of its context, here
that of the row's input (of its one text, where it has no instruction); question and answer are never cut, and a row
whose question and answer alone are too long is not written at all (the published code fails there).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Completion

_CONTROL_TOKENS = 16
"""More than any template adds to a text."""


@dataclass(frozen=True)
class WrittenForm:
    """How whole rows are worded: a template for a group of rows (see `PromptTemplate`).

    Attributes:
        inner: The run's template.
        mark: Stands between question and answer.
        lines: What asks for a row, by task.
        limit: Most tokens of a row.
    """

    inner: PromptTemplate
    mark: str
    lines: Mapping[str, str]
    limit: int

    @property
    def name(self) -> str:
        """All that the ids of a row depend on beside the row."""
        return f"written {[self.inner.name, self.mark, dict(self.lines), self.limit]}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing to say."""
        return ()

    def check(self, rows: Sequence[Instance]) -> None:
        """Takes what the run's template takes."""

    def text(self, instance: Instance) -> str:
        """What asks for a row of the instance's task."""
        return self.inner.text(self._asking(instance.task))

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """What asks for a row of the instance's task."""
        return self.inner.prompt_ids(self._asking(instance.task), tokenizer)

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The row and the token that ends it, cut to `limit`; for a row that `fits`."""
        before, context = parts_of(instance)
        after = f"\n{self.mark}\n{instance.output}"
        room = self.limit - len(self.prompt_ids(instance, tokenizer)) - 1
        ids = plain_ids(before + context + after, tokenizer)
        if len(ids) > room:
            pieces = [plain_ids(text, tokenizer) for text in (before, context, after)]
            kept = max(0, room - len(pieces[0]) - len(pieces[2]))
            ids = [*pieces[0], *pieces[1][:kept], *pieces[2]]
        return [*ids, tokenizer.eos_token_id]

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """EOS alone."""
        return (tokenizer.eos_token_id,)

    def answer(self, completion: str) -> str:
        """All of it: question and answer are read from tokens or lines (`read`)."""
        return completion

    def fits(self, instance: Instance, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the row has no more than `limit` tokens once its context is cut."""
        texts = ("".join(parts_of(instance)), self.mark, instance.output, self.text(instance))
        if sum(len(text.encode()) for text in texts) + _CONTROL_TOKENS <= self.limit:
            return True  # a text has no more tokens than bytes
        ids = self.target_ids(instance, tokenizer)
        return len(self.prompt_ids(instance, tokenizer)) + len(ids) <= self.limit

    def read(self, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
        """Question and answer of what was written; None: the mark is not in it exactly once."""
        return question_and_answer(completion.text, self.mark)

    def _asking(self, task: str) -> Instance:
        return Instance(self.lines[task], "", "", task)


def question_and_answer(text: str, mark: str) -> tuple[str, str] | None:
    """The two parts of a row that was written; None: the mark is not in it exactly once."""
    found = [*re.finditer(rf"^{re.escape(mark)}[ \t]*$", text, re.MULTILINE)]
    if len(found) != 1:
        return None
    (mark_found,) = found
    return text[: mark_found.start()].removesuffix("\n"), text[mark_found.end() :].removeprefix("\n")


def parts_of(instance: Instance) -> tuple[str, str]:
    """What of a row's question is never cut, and its context, which may lose its end; both together are its text.

    Earlier turns stand before the question, apart by blank lines; what was said by whom is not told.
    """
    before = "".join(f"{turn.content}\n\n" for turn in instance.history)
    if not (instance.instruction and instance.input):
        return before, instance.query
    return f"{before}{instance.instruction}\n\n", instance.input
