"""Ordinary text that a model writes itself, where none of its pretraining is at hand: from nothing, as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everlearn.data.general_set import row_of
from everlearn.data.prompts import bos_ids
from everlearn.errors import ModelError
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Sampling
from everlearn.seeds import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Instance
    from everlearn.generation.protocol import Generator
    from everlearn.progress import Tick

_ROUNDS = 4


def sampled_texts(
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    window: int,
    add_bos: bool,
    seed: int,
    tick: Tick,
) -> list[Instance]:
    """Texts sampled at temperature 1 from the begin token (the end token, where texts have no begin token).

    Args:
        generator: Of the model.
        tokenizer: The model's.
        count: Texts asked for; those without a token to predict are sampled again.
        window: Most tokens of one.
        add_bos: Whether the begin token belongs to the text.
        seed: Of the draws.
        tick: Called with the number of texts.

    Raises:
        ModelError: the model writes next to nothing.
    """
    begin = bos_ids(tokenizer)
    prompt = begin or [int(tokenizer.eos_token_id)]
    first = tuple(begin) if add_bos else ()
    shown = Counted(tick, count)
    rows: list[Instance] = []
    for turn in range(_ROUNDS):
        missing = count - len(rows)
        if not missing:
            break
        sampling = Sampling(
            max_new_tokens=window - len(first), max_length=window, temperature=1.0, seed=derive(seed, turn)
        )
        for (written,) in generator.generate([prompt] * missing, sampling, shown.call(len(rows))):
            tokens = (*first, *written.token_ids)
            if len(tokens) > 1:
                rows.append(row_of(tokens, written.text, len(rows)))
    if len(rows) < count:
        raise ModelError(
            f"the base ends its texts at once: {len(rows):,} of the {count:,} general texts have anything in them: "
            "name texts in a file."
        )
    return rows
