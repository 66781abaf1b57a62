"""How texts are counted: by the model's own tokenizer."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import plain_ids
from everlearn.synthesis.parsing import Counters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def counters_of(tokenizer: PreTrainedTokenizerBase) -> Counters:
    """Token counts by the model's own tokenizer.

    The published counts are by one fixed tokenizer each (P10): the language model's with BOS, the embedding model's
    with two special tokens; here the model's own stands for both.
    """

    @cache
    def count(text: str) -> int:
        return len(plain_ids(text, tokenizer))

    return Counters(text=lambda text: 1 + count(text), embedded=lambda text: 2 + count(text))
