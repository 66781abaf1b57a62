"""Tiny random models, prompts and the reference: Transformers' own `generate`, one prompt at a time."""

from __future__ import annotations

import random

from tests.tiny_models import TARGETS, make_config, make_tokenizer

END = 2
ARCHITECTURES = ("llama", "qwen3", "gpt2", "gpt_neox")


def make_model(architecture: str, *, lora: bool = False, context: int = 256, seed: int = 0):
    """A random model whose logits are spread enough that no two are equal, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(architecture, len(tokenizer), context=context))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        if lora:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(
                r=4, lora_alpha=8, target_modules=TARGETS[architecture], init_lora_weights=False, lora_dropout=0.1
            )
            model = get_peft_model(model, config)
    return model.eval(), tokenizer


def make_prompts(count: int, *, shared: int = 0, low: int = 3, high: int = 20, seed: int = 0) -> list[list[int]]:
    """Random prompts that begin with `shared` common tokens; tokens are words and characters."""
    draw = random.Random(seed)
    prefix = [draw.randrange(4, 90) for _ in range(shared)]
    return [prefix + [draw.randrange(4, 90) for _ in range(draw.randint(low, high))] for _ in range(count)]


def reference(model, prompts: list[list[int]], max_new_tokens: int, **options) -> list[list[int]]:
    """Greedy `generate`, one prompt at a time, without the end token."""
    import torch

    results = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=3,
            **options,
        )
        new = out[0, len(prompt) :].tolist()
        results.append(new[: new.index(END)] if END in new else new)
    return results
