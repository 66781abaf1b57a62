"""Token ids as a reader sees them: what is a token of its own stands in brackets, which text of the data never does.

So a `</s>` that the data spells out differs from the one that ends an answer. Line breaks, tabs and spaces at the end
of a line have signs. A text is cut in its middle: the question and the answer's cue often stand at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE, BREAK = "\u27e6", "\u27e7", "\u21b5"
_HEAD_TOKENS, _TAIL_TOKENS = 160, 80
_END_SPACES = re.compile(r" +(?=\n|$)")


def as_seen(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The ids as text: control tokens in brackets, white space that is easily overlooked as signs."""
    skipped = len(ids) - _HEAD_TOKENS - _TAIL_TOKENS
    if skipped <= 0:
        return _text(ids, tokenizer)
    gap = f"{OPEN}... {skipped:,} more tokens ...{CLOSE}"
    return f"{_text(ids[:_HEAD_TOKENS], tokenizer)}\n{gap}\n{_text(ids[-_TAIL_TOKENS:], tokenizer)}"


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return "".join(_pieces(ids, tokenizer))


def _pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    added = tokenizer.added_tokens_decoder
    control = {number for number, token in added.items() if token.special or token.content.strip()}
    control.update(tokenizer.all_special_ids)
    for is_control, run in groupby(ids, control.__contains__):
        if is_control:
            yield from (f"{OPEN}{name}{CLOSE}" for name in tokenizer.convert_ids_to_tokens(list(run)))
            continue
        text = tokenizer.decode(list(run), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one list of ids is one text"
        for mark in (OPEN, CLOSE):
            text = text.replace(mark, ascii(mark)[1:-1])
        text = _END_SPACES.sub(lambda spaces: "\u2420" * len(spaces[0]), text)
        yield text.replace("\t", "\u2409").replace("\n", f"{BREAK}\n")
