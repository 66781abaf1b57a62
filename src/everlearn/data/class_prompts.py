"""Prompts that ask for a class as the study of class-incremental learning words them, to the letter.

The answer begins with a space, the only one between the prompt's last sign and the label; lines but the first begin
with one. In texts for relation extraction the entities are marked (`[E11] head [E12]`, `[E21] tail [E22]`): the marks
are taken out of the text, and the prompt names the entities.
Source: arXiv 2312.07887, prompts of its code (`default`, `relation_classification_state`,
`relation_classification_qa`, `qa`). How it treats the spaces around a mark is not known: here a mark goes with the
space behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from everlearn.data.prompts import VanillaTemplate
from everlearn.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Instance

_MARKS = ("[E11]", "[E12]", "[E21]", "[E22]")
TEXT, HEAD, TAIL = "{text}", "{head}", "{tail}"
WORDINGS = {
    "classification": ("Input sentence: ", TEXT, "\n The label:"),
    "relation_classification_state": (
        *("Input sentence: ", TEXT, "\n The relationship between ", HEAD, " and ", TAIL, " is"),
    ),
    "relation_classification_qa": (
        *("Input sentence: ", TEXT, "\n Question: What is the relationship between ", HEAD, " and ", TAIL),
        "?\n Answer:",
    ),
    "short_answer": ("Question: ", TEXT, "\n Short Answer:"),
}
"""Name of a template to the pieces of its wording."""


class ClassTemplate(VanillaTemplate):
    """One of the wordings.

    Args:
        name: Of `WORDINGS`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._pieces = WORDINGS[name]

    def frame(self, question: str, system: str | None, is_first: bool) -> str:
        """The question in the wording; entities that it does not mark stay unnamed."""
        text = question
        if HEAD in self._pieces:
            for mark in (*(f"{mark} " for mark in _MARKS), *_MARKS):
                text = text.replace(mark, "")
            text = text.strip()
        put = {TEXT: text, HEAD: _between(question, *_MARKS[:2]), TAIL: _between(question, *_MARKS[2:])}
        return super().frame("".join(put.get(piece, piece) for piece in self._pieces), system, is_first)

    def check(self, rows: Sequence[Instance]) -> None:
        """Refuses texts without the marks of entities that the wording names.

        Raises:
            DataError: names the row.
        """
        for row in rows if HEAD in self._pieces else ():
            missing = next((mark for mark in _MARKS if mark not in row.query), None)
            if missing:
                raise DataError(
                    f"task {row.task}, row {row.id}: model.template {self.name} names the entities that a text marks "
                    f"([E11] head [E12], [E21] tail [E22]), and this one has no {missing}: mark them, or set "
                    "model.template to classification."
                )

    def prompt_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """See `PromptTemplate.prompt_ids`.

        Raises:
            DataError: as `check`.
        """
        self.check([instance])
        return super().prompt_ids(instance, tokenizer, max_tokens)

    def target_ids(
        self, instance: Instance, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None
    ) -> list[int]:
        """A space, the answer, the end token; at most `max_tokens` ids."""
        return super().target_ids(replace(instance, output=f" {instance.output}"), tokenizer, max_tokens)

    @property
    def handed_frame(self) -> str:
        """The same in Jinja, for the chat template that a model is handed back with."""
        given = "message['content']"
        text = given
        if HEAD in self._pieces:
            text += "".join(f".replace('{mark}', '')" for mark in (*(f"{mark} " for mark in _MARKS), *_MARKS))
            text += ".strip()"
        put = {TEXT: text}
        for piece, (begin, end) in ((HEAD, _MARKS[:2]), (TAIL, _MARKS[2:])):
            put[piece] = f"{given}.split('{begin}')[-1].split('{end}')[0].strip()"
        words = " + ".join(put.get(piece, json.dumps(piece)) for piece in self._pieces)
        return f"(told.system + '\\n\\n' if told.system and told.first else '') + {words}"


def _between(text: str, begin: str, end: str) -> str:
    """What stands between two marks."""
    return text.split(begin)[-1].split(end)[0].strip()
