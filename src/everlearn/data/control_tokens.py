"""Text of the data is read as text: no word of it becomes a control token.

Control tokens are the tokenizer's special tokens and, of its other added tokens, those that its chat template writes
(`<think>`, `<tool_call>`). Added words of a domain are no control tokens, and neither are line breaks, blanks or
single characters, which text cannot do without.

A tokenizer splits a text at its control tokens and encodes what stands between two of them on its own. Here that is
done with a copy of the tokenizer that knows none of them: what a frame writes itself is put back afterwards, so that
text without control tokens keeps its ids to the last one, merges with the frame and prefix spaces included. Asking
for `split_special_tokens` alone does not do: it reads added tokens that are not called special, and a Unigram or
word-level vocabulary holds `</s>` as a piece of its own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_MARK = f"\U000f0000{secrets.token_hex(8)}"  # stands for a control token of the frame; no data can foresee it
_UNWRITABLE = f"\U000f0001{secrets.token_hex(8)}"  # the control tokens' own names get this in front
_ROLES = ("system", "user", "assistant")


@lru_cache(maxsize=8)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text to id of every control token of a tokenizer."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    template = tokenizer.chat_template or ""
    source = "\0".join(map(str, template.values())) if isinstance(template, dict) else str(template)
    added = {
        token.content: at
        for at, token in tokenizer.added_tokens_decoder.items()
        if token.special or _is_written(token.content, source)
    }
    return {text: at for text, at in {**added, **named}.items() if len(text.strip()) > 1}


def _is_written(token: str, template: str) -> bool:
    """Whether a template has the token, whole or made of a role (`'<|' + message['role'] + '|>'`)."""
    if token in template:
        return True
    around = [token.split(role) for role in _ROLES if role in token]
    return any(any(parts) and all(part in template for part in parts) for parts in around)


@lru_cache(maxsize=8)
def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the control tokens, but for the one of unknown text."""
    return frozenset(control_tokens(tokenizer).values()) - {tokenizer.unk_token_id}


@lru_cache(maxsize=8)
def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds control tokens in a text, the longer first."""
    longest_first = sorted(control_tokens(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def mentioned(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The control tokens that texts name."""
    return {token for text in texts for token in control_pattern(tokenizer).findall(text)}


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of text, no control token among them."""
    ids = _encoded(text, tokenizer)
    if control_ids(tokenizer).isdisjoint(ids):
        return ids
    if tokenizer.is_fast:
        return list(deaf_copy(tokenizer).encode(text, add_special_tokens=False).ids)
    broken = control_pattern(tokenizer).sub(lambda found: f"{found[0][:1]}{_MARK}{found[0][1:]}", text).split(_MARK)
    return [
        at
        for part in broken
        for at in tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ]


def plain_offsets(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Where in a text each token of `plain_ids` begins and ends, of a fast tokenizer."""
    found = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    if control_ids(tokenizer).isdisjoint(found["input_ids"]):
        return list(found["offset_mapping"])
    return list(deaf_copy(tokenizer).encode(text, add_special_tokens=False).offsets)


def _encoded(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As `encode` does it; past its settings where there are none, which halves the time."""
    if (backend := _backend_of(tokenizer)) is None or backend.truncation or backend.padding:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False))
    backend.encode_special_tokens = True  # Transformers sets it for each call of its own
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids  # without offsets
    return ids


@lru_cache(maxsize=8)
def _backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """What encodes for a tokenizer whose class adds nothing of its own to it."""
    from transformers import PreTrainedTokenizerFast

    own, plain = type(tokenizer), PreTrainedTokenizerFast
    is_plain = isinstance(tokenizer, plain) and all(
        getattr(own, name) is getattr(plain, name) for name in ("encode", "_encode_plus")
    )
    return tokenizer.backend_tokenizer if is_plain else None


def framed_ids(pieces: Iterable[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a frame with data in it; only the frame's control tokens are such.

    Args:
        pieces: Texts in order, each with whether it is data.
        tokenizer: Encodes them as one text.
    """
    controls = control_tokens(tokenizer)
    settings = tokenizer.added_tokens_decoder
    written: list[int] = []
    sections = [""]  # what stands between the control tokens of the frame
    for text, is_data in pieces:
        at = 0
        for found in [] if is_data else control_pattern(tokenizer).finditer(text):
            token = controls[found[0]]
            sections[-1] += text[at : found.start()]
            at = found.end()
            if token in settings and settings[token].lstrip:
                sections[-1] = sections[-1].rstrip()
            if token in settings and settings[token].rstrip:
                at += len(text[at:]) - len(text[at:].lstrip())
            written.append(token)
            sections.append("")
        sections[-1] += text[at:]
    if not tokenizer.is_fast:
        ids = plain_ids(sections[0], tokenizer)
        for token, section in zip(written, sections[1:], strict=True):
            ids += [token, *plain_ids(section, tokenizer)]
        return ids
    encoded = deaf_copy(tokenizer).encode(_MARK.join(sections), add_special_tokens=False)
    left = iter(written)
    return [next(left) if text == _MARK else at for at, text in zip(encoded.ids, encoded.tokens, strict=True)]


@lru_cache(maxsize=4)
def deaf_copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of a fast tokenizer that knows one mark and no control token."""
    from tokenizers import AddedToken, Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", ()))
    words = {"".join(merge) for merge in merges}  # what merges make, text cannot do without
    hidden = {*control_tokens(tokenizer)} - words - {tokenizer.unk_token}
    for token in state["added_tokens"]:
        token["content"] = _hidden(token["content"], hidden)
    if isinstance(model["vocab"], list):
        model["vocab"] = [[_hidden(piece, hidden), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {_hidden(text, hidden): at for text, at in model["vocab"].items()}
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    copy.add_tokens([AddedToken(_MARK, normalized=False, special=False)])
    return copy


def _hidden(text: str, hidden: set[str]) -> str:
    return f"{_UNWRITABLE}{text}" if text in hidden else text
