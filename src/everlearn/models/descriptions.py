"""A base model's configuration and tokenizer, read and judged without its weights.

A tokenizer without a pad token, or with one that has no embedding, gets its end token in that role (padding never
enters a loss or an attention); one without an end token is refused, because answers could not end.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from everlearn.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from everlearn.models.sources import BaseSource

UNBOUNDED_CONTEXT = 1 << 20
"""Stands for the context of a model that states none (state-space models)."""


def read_config(source: BaseSource) -> PretrainedConfig:
    """The configuration of a causal language model.

    Raises:
        ModelError: damaged, of another kind of model, quantized, or in need of the repository's own code.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        settings = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model.base {source.name}: its config.json cannot be used ({reason}): choose a model that Transformers "
            "knows without code of its own."
        ) from None
    if type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"model.base {source.name} is a {settings.model_type} model, which is no causal language model: choose "
            "one such as Llama, Qwen, GPT-2 or GPT-NeoX."
        )
    if quantization := getattr(settings, "quantization_config", None):
        kind = quantization.get("quant_method", "") if isinstance(quantization, dict) else quantization.quant_method
        raise ModelError(
            f"model.base {source.name} is quantized ({getattr(kind, 'value', kind)}), and only weights in float32, "
            "bfloat16 or float16 can be trained here: give the model that it was made from."
        )
    return settings


def read_tokenizer(source: BaseSource) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad and an end token.

    Raises:
        ModelError: damaged, or without an end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare exceptions on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model.base {source.name}: its tokenizer cannot be read ({reason}): save it again beside the weights "
            "with tokenizer.save_pretrained(folder)."
        ) from None
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = _end_token(source, tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= _vocabulary(read_config(source)):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocabulary(source: BaseSource, tokenizer: PreTrainedTokenizerBase, settings: PretrainedConfig) -> None:
    """Refuses a tokenizer with tokens that the model has no embedding for.

    Special tokens that no prompt holds do no harm (the mark of an image in Gemma 3, an added pad token).

    Raises:
        ModelError: text, or a prompt's beginning or end, could become such a token.
    """
    most = _vocabulary(settings)
    if len(tokenizer) <= most:
        return
    idle = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    idle -= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if any(at >= most and at not in idle for at in tokenizer.get_vocab().values()):
        raise ModelError(
            f"model.base {source.name}: its tokenizer has {len(tokenizer)} tokens, its embeddings only {most}: use "
            "the tokenizer that belongs to the model."
        )


def _vocabulary(settings: PretrainedConfig) -> int:
    return int(settings.get_text_config().vocab_size)


def _end_token(source: BaseSource, tokenizer: PreTrainedTokenizerBase) -> str:
    """The end token that the generation configuration names, where it is one of the tokenizer's added tokens."""
    file = source.folder / "generation_config.json"
    ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    for token_id in ids if isinstance(ids, list) else [ids]:
        if token_id in tokenizer.added_tokens_decoder:
            return str(tokenizer.added_tokens_decoder[token_id])
    raise ModelError(
        f"model.base {source.name}: its tokenizer has no end token, so answers could not end: set one with "
        "tokenizer.eos_token = '...' and tokenizer.save_pretrained(folder)."
    )


def context_of(settings: PretrainedConfig) -> int:
    """Most tokens that a model with this configuration can take in."""
    return int(getattr(settings.get_text_config(), "max_position_embeddings", UNBOUNDED_CONTEXT))
