"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # a name that only the hub might know is not asked for again and again
REPOSITORY = Path(__file__).parents[1]

# No clock decides (the first example may load a dictionary, and the machine may be busy), nor does chance: every run
# has the same examples. Fresh ones: --hypothesis-profile=fresh.
settings.register_profile("fresh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("everlearn", settings.get_profile("fresh"), derandomize=True)
settings.load_profile("everlearn")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder beside the repository that holds real data; a test that needs it is skipped where there is none."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no folder {folder / 'data'} with real data beside the repository")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The golden vectors: what published code and formulas give, a folder for each method."""
    return REPOSITORY / "tests" / "golden"


ARCHITECTURES = ("llama", "qwen3", "gpt2", "gpt_neox")


def make_tiny_model(
    folder: Path,
    architecture: str = "llama",
    texts: list[str] | None = None,
    context: int = 1024,
    marks: tuple[str, ...] = (),
) -> Path:
    """A randomly initialised model of a few thousand weights with a small trained tokenizer, saved as a folder.

    Strings in `marks` are single tokens.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        GPTNeoXConfig,
        LlamaConfig,
        PreTrainedTokenizerFast,
        Qwen3Config,
    )

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts or ["Input: the red cat\nOutput: yes\n\n" * 3], trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.add_tokens(list(marks))
    common = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {
        "llama": lambda: LlamaConfig(**common, **sizes, max_position_embeddings=context),
        "qwen3": lambda: Qwen3Config(
            **common, **sizes, num_key_value_heads=1, head_dim=16, max_position_embeddings=context
        ),
        "gpt2": lambda: GPT2Config(**common, n_embd=32, n_layer=2, n_head=2, n_positions=context),
        "gpt_neox": lambda: GPTNeoXConfig(**common, **sizes, max_position_embeddings=context),
    }[architecture]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in a folder."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
