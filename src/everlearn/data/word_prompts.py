"""Rows of words as a causal model reads them: the sentence alone, and the place of each word's state in it.

The words stand with a space between them. Of a word that is several tokens, `words` takes the state of the first one,
as published (for a bidirectional encoder: further pieces of a word carry no tag); `words_last` takes that of its last
token, the first at which a causal model has read the whole word. No state has seen what follows it. A word without any
token, or behind the place where a prompt is cut, has no state: it is not trained on, and is answered with `O`.
Source: arXiv 2312.07887, protocol of its code for words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from everlearn.data.control_tokens import plain_offsets
from everlearn.data.prompts import PromptTemplate, VanillaTemplate, bos_ids
from everlearn.data.words import is_of_words
from everlearn.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Instance, TaskStream

FIRST, LAST = WORDS = ("words", "words_last")
"""Templates of rows of words."""


class WordTemplate(VanillaTemplate):
    """The sentence, and which token's state is a word's.

    Args:
        name: Of `WORDS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def places(
        self, row: Instance, tokenizer: PreTrainedTokenizerBase, most: int | None = None
    ) -> list[tuple[int, int]]:
        """The words of a row that have a state: number of the word, and place of its token in the prompt.

        Args:
            row: Of words.
            tokenizer: The model's.
            most: Tokens at which the prompt is cut; None: it is whole.
        """
        tokens, before = plain_offsets(row.input, tokenizer), len(bos_ids(tokenizer))
        at, begin, found = 0, 0, []
        for number, word in enumerate(row.words):
            end = begin + len(word)
            while at < len(tokens) and tokens[at][1] <= begin:
                at += 1
            behind = at
            while behind < len(tokens) and tokens[behind][0] < end:
                behind += 1
            if behind > at:
                found.append((number, before + (at if self.name == FIRST else behind - 1)))
            begin = end + 1
        return [(number, place) for number, place in found if most is None or place < most]

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """The end token: tags are no text that is written."""
        return list(self.end_ids(tokenizer))


def template_name(given: str, chosen: str, stream: TaskStream, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of a stream by name.

    Args:
        given: As the recipe has it.
        chosen: What that means for rows that are no words.
        stream: With its rows.
        tokenizer: The model's.

    Raises:
        RecipeError: the template does not fit the rows.
        ModelError: a tokenizer that cannot say where its tokens stand.
    """
    if not is_of_words(stream):
        if given in WORDS:
            raise RecipeError(
                f"model.template: {given} reads rows of words with tags, and the stream's rows are of another kind: "
                "leave it out, or give rows such as {tokens: [...], ner_tags: [...]}."
            )
        return chosen
    if given not in ("auto", *WORDS):
        raise RecipeError(
            f"model.template: {given} frames a question, and the stream's rows are words with tags, which are read as "
            f"they stand: leave it out, or set it to {FIRST} or {LAST}."
        )
    if not tokenizer.is_fast:
        raise ModelError(
            "rows of words need to know where in a text each token stands, which the model's tokenizer does not say: "
            "take a model with a fast tokenizer (tokenizer.json)."
        )
    return FIRST if given == "auto" else given


def places_in(
    rows: Sequence[Instance], template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, most: int | None
) -> list[list[int]] | None:
    """Of rows of words the places of the tokens whose states are read; None of others, whose last token's is.

    Args:
        rows: All of one kind.
        template: How they become prompts.
        tokenizer: The model's.
        most: Tokens at which prompts are cut.
    """
    if not rows or not rows[0].words:
        return None
    reads = cast("WordTemplate", template)
    return [[place for _, place in reads.places(row, tokenizer, most)] for row in rows]
