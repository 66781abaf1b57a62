"""How the embedded base model is made: tokenizer, packed corpus and training, all from one seed.

The model is a Llama of two million parameters that learns to read demonstrations of small text tasks. It is trained
as a version of an update run is (`training.text`), an endless generated corpus giving the blocks. The default
settings of `pretrain` are the recipe of the shipped weights: the same seed and token budget repeat it up to the
rounding of the machine. Weights are fp32 under bf16 autocast, saved in bf16.

Matrices inside the blocks are trained with Muon (arXiv 2502.16982: update scaled to the RMS of AdamW),
embeddings and norms with AdamW. Chosen here by a pilot of 0.6 million tokens, same batches: training loss
2.64 with Muon at 6e-3 against 3.18 with AdamW at 3e-3. Whole documents are packed side by side into blocks;
a document can see its neighbours in the block, BOS tells it that they are none of its business.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from everlearn.data.embedded.corpus import Document, documents
from everlearn.errors import UserError
from everlearn.files import write_error, write_json
from everlearn.models.embedded_tokenizer import BLANK_LINE, train_tokenizer
from everlearn.run_folder import PRETRAINING, refuse_other
from everlearn.training.engine import Row
from everlearn.training.processes import Processes
from everlearn.training.schedules import cosine, warm_up_factor
from everlearn.training.text import TextTraining
from everlearn.training.text_config import TextTrainingConfig

DEFAULT_TOKENS = 17_000_000  # about an hour on one core
BLOCK_TOKENS = 256
BATCH_BLOCKS = 8
PEAK_RATE = 6e-3
FINAL_RATE_RATIO = 0.02
WARM_UP_STEPS = 100
VOCABULARY_SIZE = 2432  # the least multiple of 128 at which every word of the pools is one token
TOKENIZER_DOCUMENTS = 60_000
OPEN_BLOCKS = 64  # blocks filled side by side, so that whole documents fit with 0.3 % padding
LOSS_WINDOW_STEPS = 50

ProgressCallback = Callable[[dict[str, float]], None]


def pretrain(
    out_dir: Path | str,
    *,
    seed: int = 0,
    tokens: int | None = None,
    steps: int | None = None,
    threads: int = 1,
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Train tokenizer and model from nothing and write them to a folder that Transformers loads.

    Args:
        out_dir: Where model, tokenizer and `pretraining.json` are written.
        seed: Root of corpus, tokenizer and initial weights.
        tokens: Token budget; the default repeats the shipped model.
        steps: Budget in steps instead.
        threads: Processor threads; more than one changes the rounding.
        progress: Called every 20 steps with step, steps (in all), tokens, loss (mean of the last 50 steps), seconds.

    Returns:
        What was done: seed, tokens, steps, loss, seconds, threads, parameters.

    Raises:
        UserError: Both budgets are given, or one that is not positive; or the loss is no longer finite.
    """
    total_steps = _budget_steps(tokens, steps)
    torch.set_num_threads(threads)
    out = Path(out_dir)
    refuse_other(out, PRETRAINING)
    write_json(out / "pretraining.json", {"seed": seed, "threads": threads})  # says whose folder it is
    tokenizer = build_tokenizer(seed)
    tokenizer.save_pretrained(str(out))
    losses: list[float] = []
    began = time.monotonic()

    def log(rows: list[Row]) -> None:
        losses.extend(row["loss"] for row in rows)
        if progress:
            progress(_state(total_steps, losses, time.monotonic() - began))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(model_config(tokenizer))
        settings = TextTrainingConfig(
            block_tokens=BLOCK_TOKENS,
            batch_blocks=BATCH_BLOCKS,
            max_grad_norm=1.0,
            precision="bfloat16",
            attention="sdpa",
            device="cpu",
        )
        blocks = packed_blocks(tokenizer, seed)
        training = TextTraining(model, settings, Processes(torch.device("cpu")), seed)
        training.train(
            lambda _: torch.from_numpy(np.stack(list(islice(blocks, BATCH_BLOCKS))).astype(np.int64)),
            _optimizers(model),
            schedule=partial(rate_factor, length=total_steps),
            peak=PEAK_RATE,
            steps=total_steps,
            padding=tokenizer.pad_token_id,
            log=log,
        )
    save(model, tokenizer, out)
    report = _state(total_steps, losses, time.monotonic() - began)
    report |= {"seed": seed, "threads": threads, "parameters": sum(p.numel() for p in model.parameters())}
    write_json(out / "pretraining.json", report)
    return report


def rate_factor(step: int, *, length: int) -> float:
    """Linear warm-up, not from 0, times a cosine that has begun with it and ends at a small rest."""
    return warm_up_factor(step + 1, WARM_UP_STEPS) * cosine(step, length=length, floor=FINAL_RATE_RATIO)


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
    """Write a bf16 copy of the model beside its tokenizer.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    try:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(str(out))
        tokenizer.save_pretrained(str(out))
    except (OSError, SafetensorError) as error:
        raise write_error(out, error) from None


def _budget_steps(tokens: int | None, steps: int | None) -> int:
    if tokens is not None and steps is not None:
        raise UserError("pretrain takes one budget, but got tokens and steps: keep one of them.")
    for name, value in {"tokens": tokens, "steps": steps}.items():
        if value is not None and value <= 0:
            raise UserError(f"pretrain: {name} must be positive, not {value}.")
    return steps or max(1, (tokens or DEFAULT_TOKENS) // (BATCH_BLOCKS * BLOCK_TOKENS))


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def _state(steps: int, losses: Sequence[float], seconds: float) -> dict[str, float]:
    return {
        "step": len(losses),
        "steps": steps,
        "tokens": len(losses) * BATCH_BLOCKS * BLOCK_TOKENS,
        "loss": float(np.mean(losses[-LOSS_WINDOW_STEPS:])),
        "seconds": round(seconds, 1),
    }
