"""Tiny random models whose computation of a row may depend on the rows beside it, by the name of their oddity."""

from __future__ import annotations

from tests.tiny_models import make_tokenizer

SWITCH = 40
"""Longest row that the models with LongRoPE here compute in their short way."""
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
_LONGROPE |= {"original_max_position_embeddings": SWITCH, "factor": 6.4}
_SEQUENCE = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
_SEQUENCE |= {"encoder_layers": 2, "encoder_ffn_dim": 8, "is_decoder": True, "is_encoder_decoder": False}
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LATENT |= {
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
_PER_TYPE = {"full_attention": _LONGROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}

LONGROPE = {
    # computes anew what it has read where its embedding changes
    "phi3": ("phi3", {**_SIZES, "rope_parameters": _LONGROPE, "original_max_position_embeddings": SWITCH}),
    "phi3 with a window": (
        "phi3",
        {**_SIZES, "rope_parameters": _LONGROPE, "original_max_position_embeddings": SWITCH, "sliding_window": 16},
    ),
    # goes on with keys of the short way
    "llama": ("llama", {**_SIZES, "num_key_value_heads": 2, "rope_parameters": _LONGROPE}),
    # has a scale of attention that changes, and frequencies that do not
    "phimoe": (
        "phimoe",
        {
            **_SIZES,
            **_EXPERTS,
            "rope_parameters": _LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.4},
            "original_max_position_embeddings": SWITCH,
        },
    ),
    # in layers of one kind alone
    "gemma3_text": (
        "gemma3_text",
        {
            **_SIZES,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": _PER_TYPE,
        },
    ),
    # beside linear attention
    "qwen3_next": (
        "qwen3_next",
        {
            **_SIZES,
            **_LINEAR,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": _LONGROPE | {"partial_rotary_factor": 1.0},
        },
    ),
}
PADDED = {
    # positions are counted from the left end of a batch
    "trocr": ("trocr", _SEQUENCE),
    "mvp": ("mvp", _SEQUENCE),
    # a convolution sees the padding
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **_SIZES,
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 16,
            "head_dim": 8,
            "num_key_value_heads": 2,
        },
    ),
    # positions by slopes, which count from the first token that is none of padding
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    # chooses the keys that it looks at, equal ones by their place
    "deepseek_v32": (
        "deepseek_v32",
        {**_SIZES, **_LATENT, "num_key_value_heads": 4, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8},
    ),
}
ALL = LONGROPE | PADDED


def make_odd(name: str, *, seed: int = 0):
    """The model, with logits spread so far that no two are equal."""
    kind, settings = ALL[name]
    return make_kind(kind, seed=seed, **settings)


def make_kind(kind: str, *, seed: int = 0, **settings):
    """A random model of a kind that Transformers knows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "vocab_size": len(make_tokenizer())}
    config = AutoConfig.for_model(kind, **{"max_position_embeddings": 256, **ids, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()
