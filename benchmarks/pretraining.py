"""The pre-training loop of version updates against Transformers' Trainer; tokenising; memory over a large text.

    python benchmarks/pretraining.py                 # loop and tokenising, 22 minutes on 2 quiet cores
    python benchmarks/pretraining.py --gigabyte      # memory too, over 1 GB of generated text (deleted afterwards)
    python benchmarks/pretraining.py --pairs 1 --scale 0.1 --gigabyte --out smaller.json        # to try it

Loop: the same random Llama, the same packed blocks in the same order, the same precision (bfloat16 autocast where
the processor has it, and float32), AdamW with gradient clipping and a cosine schedule in both. The Trainer gets ready
blocks as tensors (no padding, no tokenising) and logs every 500 steps; nothing else of its settings is touched. Each
run is a process of its own, the two in turns; the figure is the median ratio of pairs of neighbours.
Tokenising: everlearn's token files against `datasets.map` over all cores, batched, with the same fast tokenizer.
Memory: the peak of the resident set while the blocks of 1 GB of text are made and read in shuffled order, less what
the process held before it began.
Results go to benchmarks/results/pretraining.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "pretraining.json"
SHAPES: dict[str, dict[str, int]] = {
    "update quickstart": {
        "width": 96,
        "layers": 2,
        "ffn": 256,
        "vocabulary": 512,
        "rows": 8,
        "block": 128,
    },
    "embedded base": {"width": 192, "layers": 4, "ffn": 512, "vocabulary": 2432, "rows": 16, "block": 256},
    "wider and longer": {"width": 320, "layers": 4, "ffn": 864, "vocabulary": 8192, "rows": 8, "block": 512},
}
TOKENS = {"update quickstart": 200_000, "embedded base": 120_000, "wider and longer": 50_000}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--parts", default="loop,tokenising", help="of loop and tokenising; an empty text for neither")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens and bytes")
    parser.add_argument("--gigabyte", action="store_true", help="measure memory over 1 GB of text as well")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.child:
        task = json.loads(args.child)
        print(json.dumps(globals()[task.pop("do")](**task)))
        return
    from everlearn.environment import machine, versions
    from everlearn.files import write_json

    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if "loop" in args.parts:
        found["loop"] = compare_loops(args.pairs, args.scale)
    if "tokenising" in args.parts:
        found["tokenising"] = compare_tokenising(args.pairs, args.scale)
    if args.gigabyte:
        found["memory"] = measure_memory(args.scale)
    found |= {"machine": machine(), "versions": versions()}
    write_json(args.out, found)
    print(json.dumps({key: found[key] for key in ("loop", "tokenising", "memory") if key in found}, indent=2))


def child(**task: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task} ended with {done.returncode}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare_loops(pairs: int, scale: float) -> list[dict[str, Any]]:
    rows = []
    for name, shape in SHAPES.items():
        steps = max(10, int(scale * TOKENS[name]) // (shape["rows"] * shape["block"]))
        for precision in ("bfloat16", "float32"):
            runs = []
            for _ in range(pairs):
                ours = child(do="train_with_everlearn", shape=shape, steps=steps, precision=precision)
                theirs = child(do="train_with_trainer", shape=shape, steps=steps, precision=precision)
                runs.append((ours, theirs))
            assert abs(runs[0][0]["loss"] - runs[0][1]["loss"]) < 0.1, "both must train the same model"
            row = {
                "shape": name,
                **shape,
                "precision": precision,
                "steps": steps,
                "everlearn_tokens_per_s": round(median(ours["rate"] for ours, _ in runs)),
                "trainer_tokens_per_s": round(median(theirs["rate"] for _, theirs in runs)),
                "ratio": round(median(ours["rate"] / theirs["rate"] for ours, theirs in runs), 3),
                "ratio_of_processor_time": round(
                    median(theirs["processor_s"] / ours["processor_s"] for ours, theirs in runs), 3
                ),
                "ratios": [round(ours["rate"] / theirs["rate"], 3) for ours, theirs in runs],
                "losses": [runs[0][0]["loss"], runs[0][1]["loss"]],
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def make_model(shape: dict[str, int]) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = shape["width"] // 32
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape["width"],
            intermediate_size=shape["ffn"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=shape["vocabulary"],
            max_position_embeddings=shape["block"],
            tie_word_embeddings=True,
        )
    )


def make_blocks(shape: dict[str, int], steps: int, folder: Path) -> Any:
    """A token file of blocks with a learnable order, read by both sides."""
    import numpy as np

    from everlearn.data.blocks import Blocks

    rng = np.random.default_rng(0)
    start = rng.integers(0, shape["vocabulary"], (steps * shape["rows"], 1))
    ids = (start + np.arange(shape["block"]) * 7) % shape["vocabulary"]
    path = folder / "train.bin"
    ids.astype("<u2").tofile(path)
    return Blocks(path, "<u2", shape["block"])


def train_with_everlearn(shape: dict[str, int], steps: int, precision: str) -> dict[str, float]:
    import torch

    from everlearn.training.processes import Processes
    from everlearn.training.schedules import Schedule
    from everlearn.training.text import TextTraining
    from everlearn.training.text_config import TextTrainingConfig

    with tempfile.TemporaryDirectory() as folder:
        blocks = make_blocks(shape, steps, Path(folder))
        settings = TextTrainingConfig(
            block_tokens=shape["block"],
            batch_blocks=shape["rows"],
            precision=precision,  # type: ignore[arg-type]
            device="cpu",
            weight_decay=0.0,
            betas=(0.9, 0.999),
        )
        training = TextTraining(make_model(shape), settings, Processes(torch.device("cpu")), seed=0)
        losses: list[float] = []

        def read(step: int) -> torch.Tensor:
            return torch.from_numpy(blocks.read(range(step * shape["rows"], (step + 1) * shape["rows"])))

        optimizers = [training.optimizer(1e-3)]
        began, processor = time.perf_counter(), time.process_time()
        training.train(
            read,
            optimizers,
            schedule=Schedule("cosine", length=steps, floor=0.0),
            peak=1e-3,
            steps=steps,
            log=lambda rows: losses.extend(row["loss"] for row in rows),
        )
        return _speed(shape, steps, began, processor, sum(losses) / len(losses))


def train_with_trainer(shape: dict[str, int], steps: int, precision: str) -> dict[str, float]:
    import torch
    from transformers import Trainer, TrainingArguments, default_data_collator

    with tempfile.TemporaryDirectory() as folder:
        blocks = make_blocks(shape, steps, Path(folder))
        ready = torch.from_numpy(blocks.read(range(steps * shape["rows"])))
        rows = [{"input_ids": row, "labels": row} for row in ready]
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=shape["rows"],
            max_steps=steps,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            bf16=precision == "bfloat16",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
        )
        trainer = Trainer(make_model(shape), settings, train_dataset=rows, data_collator=default_data_collator)
        began, processor = time.perf_counter(), time.process_time()
        result = trainer.train()
        return _speed(shape, steps, began, processor, result.training_loss)


def _speed(shape: dict[str, int], steps: int, began: float, processor: float, loss: float) -> dict[str, float]:
    seconds = time.perf_counter() - began
    return {
        "rate": steps * shape["rows"] * shape["block"] / seconds,
        "processor_s": time.process_time() - processor,
        "loss": round(loss, 4),
    }


def write_text(path: Path, size: int) -> None:
    """Generated text of so many bytes, blank lines between documents."""
    from everlearn.data.embedded.drifting_corpus import documents_of

    documents = documents_of(3, 20_000, seed=0)
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        written = 0
        while written < size:
            text = "\n\n".join(" ".join(draw.sample(documents, 4)) for _ in range(2000)) + "\n\n"
            written += file.write(text)


def make_tokenizer(path: Path, folder: Path) -> Path:
    from everlearn.data.text import TextSource
    from everlearn.updates.start import _train_bpe, leading_text

    tokenizer = _train_bpe(leading_text(TextSource(str(path)).documents(), 2_000_000), 2048)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def compare_tokenising(pairs: int, scale: float) -> dict[str, Any]:
    size = int(scale * 40_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "text.txt"
        write_text(path, size)
        tokenizer = str(make_tokenizer(path, folder))
        runs = []
        for _ in range(pairs):
            ours = child(do="tokenise_with_everlearn", path=str(path), tokenizer=tokenizer)
            theirs = child(do="tokenise_with_datasets", path=str(path), tokenizer=tokenizer)
            runs.append((ours, theirs))
    assert runs[0][0]["tokens"] == runs[0][1]["tokens"], "both must make the same tokens"
    found = {
        "bytes": size,
        "tokens": runs[0][0]["tokens"],
        "everlearn_s": round(median(ours["seconds"] for ours, _ in runs), 2),
        "datasets_map_s": round(median(theirs["seconds"] for _, theirs in runs), 2),
        "ratio": round(median(theirs["seconds"] / ours["seconds"] for ours, theirs in runs), 3),
        "ratios": [round(theirs["seconds"] / ours["seconds"], 3) for ours, theirs in runs],
    }
    print(json.dumps(found), flush=True)
    return found


def tokenise_with_everlearn(path: str, tokenizer: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        files, seconds = tokenised(path, loaded_tokenizer(tokenizer), cache, heldout_ratio=0.0)
        return {"seconds": seconds, "tokens": files.train_tokens}


def loaded_tokenizer(folder: str) -> Any:
    from everlearn.updates.start import read_tokenizer

    return read_tokenizer(folder)


def tokenised(path: str, tokenizer: Any, cache: str, *, heldout_ratio: float) -> tuple[Any, float]:
    """Everlearn's token files of a text, and the seconds that they took."""
    from everlearn.data.blocks import tokenise
    from everlearn.data.text import TextSource
    from everlearn.updates.start import tokenizer_fingerprint

    began = time.perf_counter()
    files = tokenise(
        TextSource(path),
        tokenizer,
        Path(cache),
        what="text",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        heldout_ratio=heldout_ratio,
    )
    return files, time.perf_counter() - began


def tokenise_with_datasets(path: str, tokenizer: str) -> dict[str, float]:
    """`map` over all cores; the text is read before the clock starts, the tokens are not yet in blocks."""
    from datasets import load_dataset

    loaded = loaded_tokenizer(tokenizer)
    end = loaded.eos_token
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("text", data_files=path, sample_by="paragraph", cache_dir=cache, split="train")
        began = time.perf_counter()
        encoded = rows.map(
            lambda batch: {"input_ids": loaded([text + end for text in batch["text"] if text.strip()])["input_ids"]},
            batched=True,
            num_proc=os.cpu_count(),
            remove_columns=["text"],
        )
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "tokens": sum(len(ids) for ids in encoded["input_ids"])}


def measure_memory(scale: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for size in (int(scale * 50_000_000), int(scale * 1_000_000_000)):
            path = folder / "text.txt"
            write_text(path, size)
            tokenizer = folder / "tokenizer"
            if not tokenizer.exists():
                make_tokenizer(path, folder)
            rows.append(child(do="peak_memory", path=str(path), tokenizer=str(tokenizer), size=size))
            path.unlink()
            print(json.dumps(rows[-1]), flush=True)
    return {"sizes": rows}


def peak_memory(path: str, tokenizer: str, size: int) -> dict[str, Any]:
    """Peak resident memory above what the process held before: tokenising, then one shuffled pass over the blocks."""
    import numpy as np
    import torch  # noqa: F401 - part of what a training process holds anyway

    from everlearn.training.block_order import BlockOrder

    loaded = loaded_tokenizer(tokenizer)
    before = _peak_mib()
    with tempfile.TemporaryDirectory() as cache:
        files, tokenising = tokenised(path, loaded, cache, heldout_ratio=0.01)
        after_tokenising = _peak_mib()
        blocks = files.train(1024)
        order = BlockOrder((len(blocks) // 32,), (len(blocks),), 32, seed=0)
        total = 0
        for position in range(len(blocks) // 32):
            total += int(np.bitwise_xor.reduce(blocks.read([block for _, block in order.at(position)]), axis=None))
        return {
            "bytes": size,
            "tokens": files.train_tokens,
            "tokenising_s": round(tokenising, 1),
            "before_mib": round(before),
            "tokenising_peak_above_mib": round(after_tokenising - before),
            "reading_peak_above_mib": round(_peak_mib() - before),
        }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
