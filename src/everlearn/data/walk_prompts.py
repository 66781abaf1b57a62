"""A template whose answers are thought about first: the prompt ends in `<think>`, the answer stands between tags.

It words a row through another template (the tokenizer's chat, a frame of text), so that there is one templating only;
the published code applies a chat template to a prompt that has one already. With `system` the published message and
quiz; without, the row's own query. A chat template may take what is thought out of an answer, so the completion is
encoded by itself, up to the token that ends a turn; tags that reasoning models have as tokens are these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance, Turn
from everlearn.data.translation import SYSTEM, quiz
from everlearn.data.walks import OPENING, TAGS, answer_in, completion_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate


class WalkTemplate:
    """Asks for a walk and an answer.

    Args:
        inner: Frames what is asked.
        published: Whether rows are asked in the published words, with the published system message.
    """

    def __init__(self, inner: PromptTemplate, *, published: bool) -> None:
        self.inner, self.published = inner, published
        self.name = f"{inner.name}+{'published ' if published else ''}walk"
        self.notes = inner.notes

    def check(self, rows: Sequence[Instance]) -> None:
        """See `PromptTemplate.check`."""
        self.inner.check([self.asked(row) for row in rows])

    def text(self, instance: Instance) -> str:
        """See `PromptTemplate.text`."""
        return self.inner.text(self.asked(instance)) + OPENING

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The other template's prompt, which alone is cut, and the opening tag."""
        opening = framed_tags([OPENING], tokenizer)
        most = None if max_tokens is None else max(1, max_tokens - len(opening))
        return self.inner.prompt_ids(self.asked(instance), tokenizer, most) + opening

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The walk and the answer between their tags, and what ends an answer."""
        written = framed_tags(completion_of(instance.walk, instance.output), tokenizer)
        return [*written, self.inner.end_ids(tokenizer)[0]][:max_tokens]

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """See `PromptTemplate.end_ids`."""
        return self.inner.end_ids(tokenizer)

    def answer(self, completion: str) -> str:
        """What stands between the tags; nothing where there are none."""
        return answer_in(OPENING + completion) or ""

    def asked(self, row: Instance) -> Instance:
        """The row as the other template words it."""
        if not self.published:
            return replace(row, walk="")
        own = any(turn.role == "system" for turn in row.history)
        history = row.history if own else (Turn("system", SYSTEM), *row.history)
        return replace(row, instruction="", input=f"{quiz(row)}\n", walk="", history=history)


def framed_tags(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of tags and texts: a tag that the tokenizer has as a token is that token, unless a text of completions
    would lack it (special ones); all else is encoded as one text."""
    own = {tag: at for tag, at in tokenizer.get_added_vocab().items() if tag not in tokenizer.all_special_tokens}
    ids, text = list[int](), ""
    for piece in pieces:
        if piece in TAGS and piece in own:
            ids += [*(plain_ids(text, tokenizer) if text else ()), own[piece]]
            text = ""
        else:
            text += piece
    return ids + (plain_ids(text, tokenizer) if text else [])
