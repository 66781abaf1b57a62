"""Rows as the trainer sees them: token ids of prompt and answer, checked before any step is taken.

Prompt and answer are tokenized separately and cut on their own, as published (arXiv 2403.01244; spec section 5:
prompts to 1,024 ids with BOS, answers with EOS to 512, so an over-long answer loses its EOS).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.data.mixture import OWN
from everlearn.data.walks import completion_of
from everlearn.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate
    from everlearn.recipe import TrainingConfig

_CONTROL_TOKENS = 16
"""More than any template adds to a turn's text: BOS, EOS, the marks of a chat."""
_AT_ONCE = 256
"""Rows that are tokenized before what is kept of them is made: it then stands together in memory, without the gaps
that tokenizing leaves, which would make each following row slower."""


@dataclass(frozen=True, slots=True)
class Overlong:
    """Which of some rows are longer than `training.max_prompt_tokens` or `max_target_tokens`, by their places.

    Attributes:
        prompts: Rows whose prompt loses its end.
        answers: Rows whose answer loses its end and its end token.
    """

    prompts: frozenset[int]
    answers: frozenset[int]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One training row.

    Attributes:
        ids: Prompt, then answer.
        prompt_length: How many of them are the prompt; the loss is on the rest.
        group: Group that it came with (`everlearn.data.mixture`).
        number: Place among the rows of its group.
        is_text: Raw text, without prompt: the state of its last token is computed as well.
        classes: Of a prompt that heads are trained on, in the place of an answer: where the states stand that tell a
            class, and the place of that class among all logits.
    """

    ids: tuple[int, ...]
    prompt_length: int
    group: str = OWN
    number: int = 0
    is_text: bool = False
    classes: tuple[tuple[int, int], ...] = ()

    @property
    def computed(self) -> int:
        """Tokens that a packed forward pass takes: the last one of an answer predicts nothing and is left out."""
        return len(self.ids) if self.is_text or self.classes else len(self.ids) - 1

    @property
    def answer_count(self) -> int:
        """Answer tokens that have a token before them to be predicted from; classes of a row without an answer."""
        return len(self.classes) or len(self.ids) - max(self.prompt_length, 1)


class _Known(dict[int, int]):
    """One number object a token of the vocabulary, not one a token of the rows."""

    def __missing__(self, token: int) -> int:
        self[token] = token
        return token


def encode_rows(
    rows: Sequence[Instance],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    context_length: int,
) -> list[EncodedRow]:
    """Tokenizes training rows.

    Raises:
        DataError: there are no rows, a row has no answer token, or a row is longer than the model's context; names
            task and row.
    """
    if not rows:
        raise DataError("there are no rows to train on: give the stage's task at least one training row.")
    known = _Known()
    encoded: list[EncodedRow] = []
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        lists = [_ids(row, template, tokenizer, config, known) for row in some]
        for at, (row, (ids, prompt_length)) in enumerate(zip(some, lists, strict=True), first):
            encoded.append(_checked(row, at, ids, prompt_length, context_length))
    return encoded


def hash_of(rows: Iterable[EncodedRow]) -> str:
    """SHA-256 of all that is trained of rows, in their order; as JSON they would take three times as long."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", (len(row.ids), row.prompt_length, *row.ids)))
        digest.update(f"{row.group}{row.classes}\0".encode())
    return digest.hexdigest()


def overlong(
    rows: Sequence[Instance], template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig
) -> Overlong:
    """Finds the rows that are cut, without tokenizing those that cannot be (see `check_rows`)."""
    longest_prompt, longest_answer = config.max_prompt_tokens, config.max_target_tokens
    prompts, answers = set(), set()
    for place, row in enumerate(rows):
        if row.form == "text":
            continue
        may_have, controls = _bytes(template.text(row)), _controls(row)
        if may_have + controls > longest_prompt and len(template.prompt_ids(row, tokenizer)) > longest_prompt:
            prompts.add(place)
        may_have = _bytes(row.output) + _bytes_of_walk(row)
        if may_have + controls > longest_answer and len(template.target_ids(row, tokenizer)) > longest_answer:
            answers.add(place)
    return Overlong(frozenset(prompts), frozenset(answers))


def check_rows(
    rows: Sequence[Instance],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    context_length: int,
) -> None:
    """Refuses rows that are longer than the context, without tokenizing those that cannot be.

    A text has no more tokens than UTF-8 bytes (but for normalizers that lengthen a text; such a row is refused when
    its stage begins), and no row more than the two cuts together.

    Raises:
        DataError: as `encode_rows`.
    """
    if config.max_prompt_tokens + config.max_target_tokens <= context_length:
        return
    for at, row in enumerate(rows):
        most = _bytes(template.text(row)) + _bytes(row.output) + _bytes_of_walk(row) + _controls(row)
        if most > context_length:
            _checked(row, at, *_ids(row, template, tokenizer, config, _Known()), context_length)


_TAGS = len("".join(completion_of("", "")))


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _bytes_of_walk(row: Instance) -> int:
    """Of what a template may write before an answer, with its tags."""
    return _TAGS + (_bytes(row.walk) if row.walk else 0)


def _controls(row: Instance) -> int:
    return _CONTROL_TOKENS * (1 + len(row.history))


def _ids(
    row: Instance, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig, known: _Known
) -> tuple[list[int], int]:
    """Ids of prompt and answer, and how many of them are the prompt."""
    prompt: list[int] = []
    ids: Sequence[int] = row.tokens
    if row.form != "text":
        prompt = template.prompt_ids(row, tokenizer, config.max_prompt_tokens)
        ids = prompt + template.target_ids(row, tokenizer, config.max_target_tokens)
    return [known[token] for token in ids], len(prompt)


def _checked(row: Instance, at: int, ids: list[int], prompt_length: int, context_length: int) -> EncodedRow:
    """The row at a place of its group."""
    one = EncodedRow(tuple(ids), prompt_length, number=at, is_text=row.form == "text")
    if one.answer_count >= 1 and len(one.ids) <= context_length:
        return one
    where = f"task {row.task!r}, training row {row.id or at + 1}"
    if one.answer_count < 1 and one.is_text:
        raise DataError(f"{where}: a text of one token has no token to predict: remove the row.")
    if one.answer_count < 1:
        raise DataError(f"{where}: its answer has no tokens: remove the row or give it an output.")
    raise DataError(
        f"{where}: prompt and answer have {len(one.ids)} tokens, the model's context is {context_length}: "
        "lower training.max_prompt_tokens or training.max_target_tokens, or remove the row."
    )
