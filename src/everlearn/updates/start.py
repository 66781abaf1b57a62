"""The model at step 0 and its tokenizer: random weights of any causal architecture, or a model to start from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.text import TextSource
from everlearn.errors import ModelError, RecipeError, nearest
from everlearn.fingerprints import fingerprint_of
from everlearn.made_once import make_once
from everlearn.models.descriptions import check_tokenizer_files
from everlearn.models.faults import told
from everlearn.models.json_files import check_numbers
from everlearn.models.sources import BaseSource
from everlearn.ordinary_files import is_folder, shown
from everlearn.recipe import ModelConfig
from everlearn.seeds import derive
from everlearn.updates.config import ModelStart

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

END = "<|endoftext|>"
_TRAINING_CHARACTERS = 20_000_000


def get_tokenizer(start: ModelStart, first: TextSource, cache: Path) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer of the recipe and its fingerprint.

    Args:
        start: Names it, or asks to train one.
        first: Text of the first version, for a tokenizer that is trained.
        cache: Folder of trained tokenizers.

    Raises:
        ModelError: it cannot be read, has no end token, or is another one than that of `start_from`.
    """
    if start.start_from is not None:
        from everlearn.models.loading import load_tokenizer

        tokenizer = load_tokenizer(_base(start.start_from))
        if start.tokenizer != "train":
            _check_same(start, tokenizer)
    elif start.tokenizer == "train":
        tokenizer = _trained(first, start.vocabulary_size, cache)
    else:
        tokenizer = read_tokenizer(start.tokenizer)
    return tokenizer, tokenizer_fingerprint(tokenizer)


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer with an end token, from a folder or the hub.

    Raises:
        ModelError: it cannot be read, or has no end token.
    """
    from transformers import AutoTokenizer

    remedy = "give a folder that save_pretrained has written, a Hugging Face name, or 'train'"
    with told(f"model.tokenizer {shown(name)!r} cannot be read", remedy):
        source = BaseSource(Path(name), name, key="model.tokenizer")
        elsewhere = check_tokenizer_files(source) if is_folder(name, ModelError) else {}
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **elsewhere)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.tokenizer {name!r} has no end token, which ends every document: set its eos_token.")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies what the tokenizer makes of text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(description, dict):  # how a caller last padded or cut is not part of it
        description = {key: value for key, value in description.items() if key not in ("padding", "truncation")}
    return fingerprint_of("tokenizer", description, tokenizer.eos_token_id)


def model_config(start: ModelStart, tokenizer: PreTrainedTokenizerBase, block_tokens: int) -> PretrainedConfig:
    """The configuration of the model, complete.

    Raises:
        RecipeError: an unknown architecture or field, or a context shorter than a block.
        ModelError: `start_from` is no causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if start.start_from is not None:
        from everlearn.models.checking import check_model
        from everlearn.models.descriptions import read_config
        from everlearn.models.sources import find_base

        check_model(_base(start.start_from))
        settings = read_config(find_base(_base(start.start_from)))
    else:
        fields = dict(start.config or {})
        kind = fields.pop("model_type", None)
        known = sorted(config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING)
        if kind not in known:
            guess = nearest(str(kind), known)
            hint = f"did you mean {guess!r}?" if guess else "give one such as llama, qwen3, gpt2 or gpt_neox."
            raise RecipeError(f"model.config: model_type {kind!r} is no causal language model of Transformers; {hint}")
        default = AutoConfig.for_model(kind)
        names = {*default.to_dict(), *default.attribute_map}
        for field in fields:
            if field not in names:
                guess = nearest(field, names)
                hint = f"did you mean {guess!r}?" if guess else "see its configuration class in Transformers."
                raise RecipeError(f"model.config: {kind} has no field {field!r}; {hint}")
        ids = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        context = {"max_position_embeddings": block_tokens} if "max_position_embeddings" in names else {}
        check_numbers(fields, "model.config", "the recipe")
        try:
            settings = AutoConfig.for_model(kind, **{**ids, **context, **fields})
        except Exception as error:  # the configuration classes have exceptions of their own
            raise RecipeError(f"model.config: {kind} refuses these fields ({' '.join(str(error).split())}).") from None
        if settings.vocab_size < len(tokenizer):
            raise RecipeError(
                f"model.config: vocab_size {settings.vocab_size} is less than the tokenizer's {len(tokenizer)} "
                "tokens: leave it out, or lower model.vocabulary_size."
            )
    longest = getattr(settings.get_text_config(), "max_position_embeddings", None)
    if longest is not None and longest < block_tokens:
        raise RecipeError(
            f"training.block_tokens ({block_tokens}) is longer than the model's context ({longest}): shorten the "
            "blocks."
        )
    return settings


def initial_model(start: ModelStart, settings: PretrainedConfig, seed: int) -> PreTrainedModel:
    """The float32 model at step 0, on the CPU, in training mode."""
    import torch
    from transformers import AutoModelForCausalLM

    if start.start_from is not None:
        from everlearn.models.loading import load_model

        return load_model(_base(start.start_from), trainable=True).model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        with told("model.config: no model can be built from it", "mend its sizes"):
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    return model.train()


def size_of(settings: PretrainedConfig) -> tuple[int, int]:
    """Parameters in all, and those that multiply: all but an input embedding that is not also the output head."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), told("model.config: no model can be built from it", "mend its sizes"):
        model = AutoModelForCausalLM.from_config(settings)
    count = sum(parameter.numel() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_shared = head is not None and settings.get_text_config().tie_word_embeddings
    return count, count - (0 if is_shared else embedding.weight.numel())


def _base(name: str) -> ModelConfig:
    return ModelConfig(base=name, tuning="full", dtype="float32", device="cpu")


def _check_same(start: ModelStart, own: PreTrainedTokenizerBase) -> None:
    other = read_tokenizer(start.tokenizer)
    if tokenizer_fingerprint(other) != tokenizer_fingerprint(own):
        raise ModelError(
            f"model.start_from {start.start_from!r} was trained with another tokenizer than model.tokenizer "
            f"{start.tokenizer!r}: leave model.tokenizer out to use the model's own."
        )


def _trained(first: TextSource, size: int, cache: Path) -> PreTrainedTokenizerBase:
    """Byte-level BPE, so that later versions' new words need no unknown token."""
    fingerprint = fingerprint_of("bpe-1", first.fingerprint(), size, END)
    from everlearn.models.loading import save_tokenizer

    folder = cache / "tokenizers" / fingerprint

    def make(partial: Path) -> None:
        save_tokenizer(_train_bpe(leading_text(first.documents(), _TRAINING_CHARACTERS), size), partial)

    make_once(folder, "tokenizer.json", make, shared=cache)
    return read_tokenizer(str(folder))


def leading_text(documents: Iterable[str], most: int) -> Iterable[str]:
    """The leading documents with at most so many characters in all, at least one."""
    seen = 0
    for document in documents:
        yield document
        seen += len(document)
        if seen >= most:
            return


def _train_bpe(documents: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stream = iter(documents)
    tokenizer.train_from_iterator(iter(lambda: list(islice(stream, 1000)), []), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
