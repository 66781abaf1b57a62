"""A base model's configuration and tokenizer, read and judged without its weights.

A tokenizer without a pad token, or with one that has no embedding, gets its end token in that role (padding never
enters a loss or an attention); one without an end token is refused, because answers could not end.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.errors import ModelError
from everlearn.models.faults import told, without_panics
from everlearn.models.folders import loadable_files
from everlearn.models.json_files import check_numbers, read_object
from everlearn.ordinary_files import is_regular, shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from everlearn.models.sources import BaseSource

_CONFIG, _GENERATION, _TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
_TOKENIZER_JSON = (_TOKENIZER_CONFIG, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_CONTEXT = "max_position_embeddings"
_SWITCHES = re.compile(r"(output|return)_|(use_cache|do_sample)$")
_NO_PAD = -1  # as some write it
_SEARCH_S = 10.0
"""Seconds after which no further key is tried as the one at fault."""
UNBOUNDED_CONTEXT = 1 << 20
"""Stands for the context of a model that states none (state-space models)."""


def read_config(source: BaseSource) -> PretrainedConfig:
    """The configuration of a causal language model.

    Raises:
        ModelError: damaged, with a wrong value (names its key), of another kind of model, quantized, or in need of
            code that does not come with Transformers.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    tree = read_object(source.folder / _CONFIG, source.label)
    check_numbers(tree, _CONFIG, source.label)
    _check_kernels(source, tree)
    _check_texts(source, tree)
    with told(blamed(source, tree), "mend it, or choose a model that Transformers knows without code of its own"):
        settings = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
        language = settings.get_text_config()
        sizes = {key: getattr(language, key, 1) for key in ("vocab_size", "num_hidden_layers", _CONTEXT)}
    if type(settings) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source.label} is a {shown(settings.model_type)} model, which is no causal language model: choose "
            "one such as Llama, Qwen, GPT-2 or GPT-NeoX."
        )
    if quantization := getattr(settings, "quantization_config", None):
        kind = quantization.get("quant_method", "") if isinstance(quantization, dict) else quantization.quant_method
        raise ModelError(
            f"{source.label} is quantized ({shown(str(getattr(kind, 'value', kind)))}), and only weights in float32, "
            "bfloat16 or float16 can be read: give the model that it was made from (model.quantization quantizes it)."
        )
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _wrong(source, _CONFIG, key, value, "a whole number of 1 or more")
    _check_ids(source, tree, _CONFIG, sizes["vocab_size"])
    for part in (settings, language):
        if getattr(part, "pad_token_id", None) == _NO_PAD:  # torch would take the last token for it
            part.pad_token_id = None
    return settings


def check_generation(source: BaseSource, settings: PretrainedConfig) -> None:
    """Refuses a `generation_config.json` that Transformers could not read or write again.

    Raises:
        ModelError: damaged, or with a wrong value.
    """
    from transformers import GenerationConfig

    file = source.folder / _GENERATION
    if not is_regular(file, ModelError):
        return
    tree = read_object(file, source.label)
    check_numbers(tree, _GENERATION, source.label)
    with told(f"{source.label}: {_GENERATION} cannot be used", "mend the value, or delete the file"):
        GenerationConfig.from_dict(tree)
    _check_ids(source, tree, _GENERATION, _vocabulary(settings))
    for key, value in tree.items():
        if _SWITCHES.match(key) and not isinstance(value, bool | None):
            raise _wrong(source, _GENERATION, key, value, "true or false")


def _check_ids(source: BaseSource, tree: dict[str, Any], file: str, vocabulary: int) -> None:
    """Refuses tokens that the model does not have."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = tree.get(key)
        for token_id in ids if isinstance(ids, list) and key.startswith("eos") else [ids]:
            is_id = isinstance(token_id, int) and not isinstance(token_id, bool)
            least = _NO_PAD if key.startswith("pad") else 0
            if token_id is not None and not (is_id and least <= token_id < vocabulary):
                raise _wrong(source, file, key, token_id, f"one of the model's {vocabulary} tokens")


def _wrong(source: BaseSource, file: str, key: str, value: object, right: str) -> ModelError:
    return ModelError(f"{source.label}: {file}: {key} is {shown(repr(value))}, not {right}: mend it.")


def _check_texts(source: BaseSource, tree: dict[str, Any]) -> None:
    """Refuses other things where names belong: Transformers looks past some and guesses."""
    inner = tree.get("text_config")
    for place, part in (("", tree), ("text_config.", inner if isinstance(inner, dict) else {"model_type": ""})):
        if not isinstance(kind := part.get("model_type", "" if place else None), str):
            raise _wrong(source, _CONFIG, f"{place}model_type", kind, "the name of an architecture")
    for key in ("dtype", "torch_dtype"):
        if not isinstance(value := tree.get(key), str | None):
            raise _wrong(source, _CONFIG, key, value, "the name of a number format")
    names = tree.get("architectures")
    if not (names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise _wrong(source, _CONFIG, "architectures", names, "a list of names")


def _check_kernels(source: BaseSource, tree: dict[str, Any]) -> None:
    """Refuses a configuration that has compiled code fetched from the hub."""
    for part in (tree, tree.get("text_config")):
        for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
            if isinstance(part, dict) and "/" in str(part.get(key)):
                raise ModelError(
                    f"{source.label}: {_CONFIG}: {key} names code on the Hugging Face hub, which is never run here: "
                    "take the key out."
                )


def blamed(source: BaseSource, tree: dict[str, Any], *, builds: bool = False) -> Callable[[BaseException], str]:
    """What a sentence of `told` begins with, should the configuration not be usable: it names the key at fault.

    Args:
        source: Whose configuration it is.
        tree: What the file holds.
        builds: Whether a model is built, not only its configuration.
    """

    def what(error: BaseException) -> str:
        named = (key for key in tree if f"'{key}'" in str(error))
        key = next(named, None) or _key_at_fault(tree, builds)
        if key is None:
            return f"{source.label}: its {_CONFIG} cannot be used"
        return f"{source.label}: {_CONFIG}: {shown(key)} cannot be {shown(repr(tree[key]))}"

    return what


def _key_at_fault(tree: dict[str, Any], builds: bool) -> str | None:
    """The key without which the configuration can be used: Transformers' errors name it now and then only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    until = time.monotonic() + _SEARCH_S
    for key in tree:
        if key == "model_type" or time.monotonic() > until:
            continue
        try:
            settings = AutoConfig.for_model(**{other: value for other, value in tree.items() if other != key})
            if builds:
                with torch.device("meta"):
                    AutoModelForCausalLM.from_config(settings)
        except Exception:
            continue
        return key
    return None


def read_tokenizer(source: BaseSource) -> PreTrainedTokenizerBase:
    """The tokenizer, with a pad and an end token.

    Raises:
        ModelError: damaged, or without an end token.
    """
    from transformers import AutoTokenizer

    elsewhere = check_tokenizer_files(source)
    what = f"{source.label}: its tokenizer cannot be read"
    with told(what, "save it again beside the weights with tokenizer.save_pretrained(folder)"), without_panics():
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, **elsewhere)
        _prove(tokenizer)
        if tokenizer.eos_token_id is None:
            tokenizer.eos_token = _end_token(source, tokenizer)
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= _vocabulary(read_config(source)):
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_tokenizer_files(source: BaseSource) -> dict[str, None]:
    """Reads the small files of a tokenizer as JSON, and sets aside paths in them that lead out of the folder.

    Returns:
        Keyword arguments that make Transformers look for such files in the folder alone: `tokenizer_config.json`
        often holds the paths of the machine that it was written on.
    """
    for file in loadable_files(source.folder, source.label):
        is_tokenizers = file.name in _TOKENIZER_JSON and file.parent == source.folder
        tree = read_object(file, source.label) if is_tokenizers else {}
        if file.name != _TOKENIZER_CONFIG:
            continue
        others = tree.get("fast_tokenizer_files") or []
        if not isinstance(others, list) or any(Path(str(name)).name != name for name in others):
            raise ModelError(
                f"{source.label}: {file.name}: fast_tokenizer_files names no files of the folder: mend it."
            )
        for key in ("vocab", "merges", "init_inputs"):
            if isinstance(tree.get(key), str) or (key == "init_inputs" and tree.get(key)):
                raise ModelError(f"{source.label}: {file.name}: {key} may name a file elsewhere: take the key out.")
        return {key: None for key, value in tree.items() if key.endswith("_file") and isinstance(value, str)}
    return {}


def _prove(tokenizer: PreTrainedTokenizerBase) -> None:
    """Uses it once: damage of some files shows no earlier."""
    ids = tokenizer("a b")["input_ids"]
    tokenizer.decode(ids)


def check_vocabulary(source: BaseSource, tokenizer: PreTrainedTokenizerBase, settings: PretrainedConfig) -> None:
    """Refuses a tokenizer with tokens that the model has no embedding for.

    Special tokens that no prompt holds do no harm (the mark of an image in Gemma 3, an added pad token).

    Raises:
        ModelError: text, or a prompt's beginning or end, could become such a token.
    """
    most = _vocabulary(settings)
    known = [*tokenizer.get_vocab().values(), *tokenizer("a b")["input_ids"]]
    if max(known) < most:
        return
    idle = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}
    idle -= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    if any(at >= most and at not in idle for at in known):
        raise ModelError(
            f"{source.label}: its tokenizer has {len(tokenizer)} tokens up to number {max(known)}, its embeddings "
            f"only {most} (vocab_size of {_CONFIG}): use the tokenizer that belongs to the model."
        )


def _vocabulary(settings: PretrainedConfig) -> int:
    return int(settings.get_text_config().vocab_size)


def _end_token(source: BaseSource, tokenizer: PreTrainedTokenizerBase) -> str:
    """The end token that the generation configuration names, where it is one of the tokenizer's added tokens."""
    file = source.folder / _GENERATION
    ids = read_object(file, source.label).get("eos_token_id") if is_regular(file, ModelError) else None
    for token_id in ids if isinstance(ids, list) else [ids]:
        if token_id in tokenizer.added_tokens_decoder:
            return str(tokenizer.added_tokens_decoder[token_id])
    raise ModelError(
        f"{source.label}: its tokenizer has no end token, so answers could not end: set one with "
        "tokenizer.eos_token = '...' and tokenizer.save_pretrained(folder)."
    )


def context_of(settings: PretrainedConfig) -> int:
    """Most tokens that a model with this configuration can take in."""
    return int(getattr(settings.get_text_config(), "max_position_embeddings", UNBOUNDED_CONTEXT))
