"""The tokenizer of a GGUF file, held to the rules that the file names.

A GGUF file has vocabulary and merges; how text is split before merging it only names (`tokenizer.ggml.pre`), after the
tables of llama.cpp (`src/llama-vocab.cpp`). Transformers builds some of these splits, and for every other name takes
GPT-2's without a word: of SmolLM's numbers it then makes other tokens than the model knows. So a name is taken by rule
here, or refused. Of a SentencePiece vocabulary the rule is whether a text begins with a space of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from everlearn.errors import ModelError
from everlearn.ordinary_files import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN = frozenset(
    "gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code gigachat roberta-bpe mpt olmo jais "
    "trillion granite-docling".split()
)
"""Split by GPT-2's expression and nothing else."""
_DIGITS = frozenset("starcoder refact command-r smollm codeshell exaone minerva-7b".split())
"""Each digit by itself first, then as GPT-2."""
_WHOLE_FIRST = frozenset(
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken".split()
)
"""A piece that is a token is taken whole, whatever the merges say; and a text begins with the begin token."""
_BYTES, _PIECES = "gpt2", ("llama", "gemma4")
_SPACE = "▁"
_CONTROL = 3
PROBES = ("a", "It's 1234.5 café\n\n  x\ty", "你好, 世界 — 42 %")
"""Texts in which the rules differ."""


def held_to_rules(tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any], label: str) -> PreTrainedTokenizerBase:
    """The tokenizer that Transformers has read from a GGUF file, with the file's way of splitting text.

    Args:
        tokenizer: Changed in place.
        facts: The file's metadata by key.
        label: How a sentence about it begins.

    Returns:
        The same, or one without tokens that the file does not have.

    Raises:
        ModelError: the file names rules that are not known here, or that Transformers has not kept.
    """
    kind, split = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    if kind == _BYTES:
        _split(tokenizer, split, label)
    elif kind not in _PIECES:
        raise _unknown(label, f"is of the kind {shown(repr(kind))}, which Transformers cannot build")
    tokenizer = _without_foreign(tokenizer, len(facts["tokenizer.ggml.tokens"]))
    begins = bool(facts.get("tokenizer.ggml.add_bos_token", kind == "llama" or split in _WHOLE_FIRST))
    if begins != (tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]):
        tokenizer.add_bos_token = begins
    if kind == "llama":
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
        if first.startswith(_SPACE) != bool(facts.get("tokenizer.ggml.add_space_prefix", True)):
            raise _unknown(
                label, "begins a text otherwise than Transformers builds it (tokenizer.ggml.add_space_prefix)"
            )
    _check_control_tokens(tokenizer, facts, label)
    return tokenizer


def _without_foreign(tokenizer: PreTrainedTokenizerBase, count: int) -> PreTrainedTokenizerBase:
    """Drops what Transformers' GPT-2 tokenizer adds of its own: a token beyond the model's embeddings."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [token for token in tree["added_tokens"] if token["id"] < count]
    if len(own) == len(tree["added_tokens"]):
        return tokenizer
    backend = Tokenizer.from_str(json.dumps({**tree, "added_tokens": own}))
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    names = {name: backend.id_to_token(at) for name, at in ids.items() if at is not None and at < count}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=tokenizer.chat_template, **names)


def _split(tokenizer: PreTrainedTokenizerBase, name: object, label: str) -> None:
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _PLAIN:
        backend.pre_tokenizer = plain
    elif name in _DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    elif not isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence):  # which Transformers makes by the name
        said = "not said" if name in (None, "default") else f"called {shown(repr(name))}, which is not known here"
        raise _unknown(label, f"splits text by rules that are {said} (tokenizer.ggml.pre)")
    if name in _WHOLE_FIRST:
        backend.model.ignore_merges = True


def _check_control_tokens(tokenizer: PreTrainedTokenizerBase, facts: Mapping[str, Any], label: str) -> None:
    """Refuses a tokenizer that would take the marks of prompts for ordinary text.

    Raises:
        ModelError: names one.
    """
    tokens, kinds = facts.get("tokenizer.ggml.tokens", ()), facts.get("tokenizer.ggml.token_type", ())
    template = tokenizer.chat_template or ""
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for at, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if kind != _CONTROL or not (at in needed or token in template):
            continue
        if tokenizer(token, add_special_tokens=False)["input_ids"] != [at]:
            raise _unknown(label, f"takes its control token {shown(repr(token))} for ordinary text when it is rebuilt")


def _unknown(label: str, fault: str) -> ModelError:
    return ModelError(f"{label}: its tokenizer {fault}: give the folder of the model that the file was made from.")
