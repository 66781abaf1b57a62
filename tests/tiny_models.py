"""Tiny random models and a tokenizer for tests, made in code and saved as folders that `load_model` reads."""

from __future__ import annotations

from pathlib import Path

WORDS = "the a cat dog bird red green blue big small runs sleeps says yes no positive negative true false".split()
ARCHITECTURES = ("llama", "qwen3", "gpt2", "gpt_neox")
RANDOM_SSR = {
    "name": "ssr",
    "preset": "faithful",
    "top_p": 1.0,
    "top_k": 0,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "clusters": 1,
    "minimum": 0,
}
"""SSR with a random model: nothing but the marks shapes its text."""
TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
}


def make_tokenizer(*, pad: bool = True, eos: bool = True, bos: bool = True):
    """A word-level tokenizer (about 90 tokens; unknown words become characters of the ASCII alphabet)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    pieces = [*specials, *WORDS, *(chr(code) for code in range(33, 127))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(pieces))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>"}
    names |= {"bos_token": "<s>"} if bos else {}
    names |= {"eos_token": "</s>"} if eos else {}
    names |= {"pad_token": "<pad>"} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_config(architecture: str, vocabulary_size: int, *, context: int = 256, tied: bool = False):
    """A configuration of two layers and 32 hidden units."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen3Config

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "vocab_size": vocabulary_size}
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        **ids,
    }
    if architecture == "llama":
        return LlamaConfig(num_key_value_heads=2, **common)
    if architecture == "qwen3":
        return Qwen3Config(num_key_value_heads=2, head_dim=8, **common)
    if architecture == "gpt_neox":
        return GPTNeoXConfig(hidden_dropout=0.0, attention_dropout=0.0, **common)
    return GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=context, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids
    )


def save_tiny_model(
    folder: Path, architecture: str = "llama", *, seed: int = 0, tied: bool = False, **tokenizer
) -> Path:
    """Writes a random model with its tokenizer into `folder`; keyword arguments go to `make_tokenizer`."""
    import torch
    from transformers import AutoModelForCausalLM

    words = make_tokenizer(**tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(architecture, len(words), tied=tied))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_with_eyes(folder: Path) -> Path:
    """A model whose vision tower has linear layers of the same names as its language model."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3Config

    words = make_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = sizes | {"vocab_size": len(words), "num_key_value_heads": 2, "head_dim": 8}
    eyes = sizes | {"image_size": 28, "patch_size": 14}
    ids = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text | ids, vision_config=eyes, **ids))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
