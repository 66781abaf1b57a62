"""How the embedded base model is made: tokenizer, packed corpus and training, all from one seed.

The model is a Llama of two million parameters that learns to read demonstrations of small text tasks. The
default settings of `pretrain` are the recipe of the shipped weights: the same seed and token budget repeat it
up to the rounding of the machine. Weights are fp32 under bf16 autocast, saved in bf16.

Matrices inside the blocks are trained with Muon (arXiv 2502.16982: update scaled to the RMS of AdamW),
embeddings and norms with AdamW. Chosen here by a pilot of 0.6 million tokens, same batches: training loss
2.64 with Muon at 6e-3 against 3.18 with AdamW at 3e-3. Whole documents are packed side by side into blocks;
a document can see its neighbours in the block, BOS tells it that they are none of its business.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from everlearn.data.corpus import Document, documents
from everlearn.errors import UserError
from everlearn.models.embedded_tokenizer import BLANK_LINE, train_tokenizer

DEFAULT_TOKENS = 17_000_000  # about an hour on one core
BLOCK_TOKENS = 256
BATCH_BLOCKS = 8
PEAK_RATE = 6e-3
FINAL_RATE_RATIO = 0.02
WARM_UP_STEPS = 100
VOCABULARY_SIZE = 2432  # the least multiple of 128 at which every word of the pools is one token
TOKENIZER_DOCUMENTS = 60_000
OPEN_BLOCKS = 64  # blocks filled side by side, so that whole documents fit with 0.3 % padding
REPORT_EVERY_STEPS = 20
LOSS_WINDOW_STEPS = 50

ProgressCallback = Callable[[dict[str, float]], None]


def pretrain(
    out_dir: Path | str,
    *,
    seed: int = 0,
    tokens: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    threads: int = 1,
    checkpoint_minutes: float | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Train tokenizer and model from nothing and write them to a folder that Transformers loads.

    Args:
        out_dir: Where model, tokenizer and `pretraining.json` are written.
        seed: Root of corpus, tokenizer and initial weights.
        tokens: Token budget; the default repeats the shipped model.
        steps: Budget in steps instead.
        minutes: Budget in minutes instead; the schedule then follows the clock and does not repeat exactly.
        threads: Processor threads; more than one changes the rounding.
        checkpoint_minutes: Also write the model this often on the way.
        progress: Called now and then with step, steps (expected in all), fraction, tokens, loss (mean of the
            last 50 steps) and seconds.

    Returns:
        What was done: seed, tokens, steps, loss, seconds, threads, parameters.

    Raises:
        UserError: More than one budget is given, or one that is not positive.
    """
    total_steps = _budget_steps(tokens, steps, minutes)
    torch.set_num_threads(threads)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(seed)
    tokenizer.save_pretrained(str(out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(model_config(tokenizer))
    optimizers = _optimizers(model)
    blocks = packed_blocks(tokenizer, seed)
    started = saved = time.monotonic()
    losses: list[float] = []
    step, fraction = 0, 0.0
    while fraction < 1.0:
        _set_rate(optimizers, step, fraction)
        losses.append(_train_step(model, optimizers, list(islice(blocks, BATCH_BLOCKS))))
        step += 1
        now = time.monotonic()
        fraction = step / total_steps if minutes is None else (now - started) / (60 * minutes)
        if progress and (step % REPORT_EVERY_STEPS == 0 or fraction >= 1.0):
            progress(_state(step, fraction, losses, now - started))
        if checkpoint_minutes and now - saved > 60 * checkpoint_minutes:
            save(model, tokenizer, out)
            saved = now
    save(model, tokenizer, out)
    report = _state(step, 1.0, losses, time.monotonic() - started)
    report |= {"seed": seed, "threads": threads, "parameters": sum(p.numel() for p in model.parameters())}
    (out / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def build_tokenizer(seed: int) -> PreTrainedTokenizerBase:
    """Train the tokenizer on its own stream of corpus documents."""
    drawn = islice(documents(seed, "tokenizer"), TOKENIZER_DOCUMENTS)
    return train_tokenizer((f"{doc.text}{BLANK_LINE}{doc.answer}" for doc in drawn), VOCABULARY_SIZE)


def model_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The shape of the embedded model: 192 wide, 4 layers, 6 heads, tied embeddings, context 512."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def packed_blocks(tokenizer: PreTrainedTokenizerBase, seed: int, split: str = "train") -> Iterator[NDArray[np.uint16]]:
    """Endless blocks of `BLOCK_TOKENS` ids: whole documents, each BOS ... EOS, padded at the end (best fit).

    Documents longer than a block are left out.
    """
    open_blocks: list[list[int]] = [[] for _ in range(OPEN_BLOCKS)]
    stream = documents(seed, split)
    while True:
        for ids in encode_documents(tokenizer, list(islice(stream, 256))):
            if len(ids) > BLOCK_TOKENS:
                continue
            fitting = [at for at, held in enumerate(open_blocks) if len(held) + len(ids) <= BLOCK_TOKENS]
            if fitting:
                open_blocks[max(fitting, key=lambda at: len(open_blocks[at]))].extend(ids)
                continue
            fullest = max(range(OPEN_BLOCKS), key=lambda at: len(open_blocks[at]))
            block = np.full(BLOCK_TOKENS, tokenizer.pad_token_id, dtype=np.uint16)
            block[: len(open_blocks[fullest])] = open_blocks[fullest]
            open_blocks[fullest] = list(ids)
            yield block


def encode_documents(tokenizer: PreTrainedTokenizerBase, batch: list[Document]) -> list[list[int]]:
    """Ids with BOS and EOS; the answer of a zero-shot document is tokenized apart, as in fine-tuning."""
    texts = tokenizer([doc.text for doc in batch])["input_ids"]
    answers = tokenizer([doc.answer for doc in batch], add_special_tokens=False)["input_ids"]
    return [[*text, *answer, tokenizer.eos_token_id] for text, answer in zip(texts, answers, strict=True)]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write a bf16 copy of the model beside its tokenizer."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))


def _budget_steps(tokens: int | None, steps: int | None, minutes: float | None) -> int:
    given = {"tokens": tokens, "steps": steps, "minutes": minutes}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"pretrain takes one budget, but got {' and '.join(named)}: keep one of them.")
    if any(value is not None and value <= 0 for value in given.values()):
        raise UserError(f"pretrain: {named[0]} must be positive, not {given[named[0]]}.")
    return steps or max(1, (tokens or DEFAULT_TOKENS) // (BATCH_BLOCKS * BLOCK_TOKENS))


def _train_step(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], blocks: list[NDArray[np.uint16]]
) -> float:
    ids = torch.from_numpy(np.stack(blocks).astype(np.int64))  # (batch, block)
    labels = ids.masked_fill(ids == model.config.pad_token_id, -100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.item())


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _set_rate(optimizers: list[torch.optim.Optimizer], step: int, fraction: float) -> None:
    """Linear warm-up, then cosine down to a small rest."""
    cosine = 0.5 * (1 + math.cos(math.pi * fraction))
    scale = min(1.0, (step + 1) / WARM_UP_STEPS) * (FINAL_RATE_RATIO + (1 - FINAL_RATE_RATIO) * cosine)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * scale


def _state(step: int, fraction: float, losses: list[float], seconds: float) -> dict[str, float]:
    return {
        "step": step,
        "steps": max(step, round(step / fraction)),
        "fraction": fraction,
        "tokens": step * BATCH_BLOCKS * BLOCK_TOKENS,
        "loss": float(np.mean(losses[-LOSS_WINDOW_STEPS:])),
        "seconds": round(seconds, 1),
    }
