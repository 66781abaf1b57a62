"""When a completion ends: end tokens and stop strings.

A stop string is looked for in the decoded text, because tokens do not respect its borders. Decoding after every
token would cost more than a small model's step, so a token is only looked at when it can be the one that completes
a stop string: its text holds the last character of one. Which tokens do is remembered for each token once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNDECODABLE = "\ufffd"
"""What a tokenizer shows for bytes that are not yet a whole character."""


class Stopper:
    """Decides whether the last token of a completion ended it, and renders completions.

    Args:
        tokenizer: Of the model.
        stop: Strings that end a completion.
        end_tokens: Ids that end a completion.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], end_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._end_tokens = end_tokens
        self._last_characters = {text[-1] for text in self._stop}
        self._window = max((4 * len(text) + 8 for text in self._stop), default=0)
        self._suspects: dict[int, bool] = {}

    def reason(self, token_ids: Sequence[int]) -> str | None:
        """`eos` or `stop` when the last of these generated tokens ends the completion, else None."""
        last = token_ids[-1]
        if last in self._end_tokens:
            return "eos"
        if self._stop and self._is_suspect(last):
            tail = self.decode(token_ids[-self._window :])
            if any(text in tail for text in self._stop):
                whole = self.decode(token_ids)
                return "stop" if any(text in whole for text in self._stop) else None
        return None

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens without special ones."""
        return str(
            self._tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def finish(self, token_ids: list[int], reason: str) -> tuple[str, tuple[int, ...], str]:
        """Text, token ids and reason of a completion that has ended.

        The text is cut before the first stop string; then only the tokens that its text needs are kept. The end
        token is dropped.
        """
        kept = token_ids[:-1] if reason == "eos" else token_ids
        text = self.decode(kept)
        cuts = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        if not cuts:
            return text, tuple(kept), reason
        text = text[: min(cuts)]
        low, high = 0, len(kept)
        while low < high:
            middle = (low + high) // 2
            if len(self.decode(kept[:middle])) >= len(text):
                high = middle
            else:
                low = middle + 1
        return text, tuple(kept[:low]), "stop"

    def _is_suspect(self, token: int) -> bool:
        known = self._suspects.get(token)
        if known is None:
            # twice, because some decoders drop the leading space of the first token
            text = self.decode([token, token])
            known = UNDECODABLE in text or any(character in text for character in self._last_characters)
            self._suspects[token] = known
        return known


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a completion: those of the generation configuration and the tokenizer's end token."""
    settings = getattr(model, "generation_config", None)
    ids = getattr(settings, "eos_token_id", None)
    listed = ids if isinstance(ids, list | tuple) else [ids]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)
