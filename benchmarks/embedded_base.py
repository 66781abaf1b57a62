"""What the embedded base can and cannot do; the source of the figures in its card.

`python benchmarks/embedded_base.py` measures few-shot accuracy by family, perplexity on held-out stories, zero-shot
scores on the stream, the synthesis rate of self-synthesized rehearsal for every task of the stream, and what plain
sequential tuning learns and forgets. It uses Transformers and PEFT directly, so that the figures
do not depend on the rest of everlearn. Results go to `benchmarks/results/embedded_base.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from everlearn.data.embedded.corpus import held_out_microtasks, held_out_text
from everlearn.data.embedded.grammars import Grammar
from everlearn.data.embedded.stream import TASKS, embedded_stream
from everlearn.data.instance import Instance, Task
from everlearn.models.embedded_base import embedded_base_path

RESULTS = Path(__file__).parent / "results" / "embedded_base.json"
SAMPLING = {
    "temperature 0.9, top-p 0.95": {"temperature": 0.9, "top_p": 0.95},
    "temperature 0.9, top-p 0.6, repetition penalty 1.2": {
        "temperature": 0.9,
        "top_p": 0.6,
        "repetition_penalty": 1.2,
    },
}
TUNING = {
    "full": {"rate": 1e-3, "epochs": 12},
    "lora": {"rate": 5e-3, "epochs": 12, "rank": 16, "alpha": 32},
}
BATCH_ROWS = 16


class Base:
    """Model and tokenizer of the folder, freshly loaded in fp32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def continuations(self, prompts: Sequence[str], **options: object) -> list[str]:
        """The model's continuation of each prompt, up to EOS."""
        texts: list[str] = []
        for start in range(0, len(prompts), 60):
            encoded = self.tokenizer(list(prompts[start : start + 60]), return_tensors="pt", padding=True)
            with torch.no_grad():
                ids = self.model.generate(
                    input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], **options
                )
            texts += self.tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts


def few_shot(base: Base, count: int) -> dict[str, float]:
    """4-shot exact match on held-out micro-tasks, by family and in all."""
    rows = held_out_microtasks(count, seed=0)
    stop = [base.tokenizer.eos_token_id, base.tokenizer.convert_tokens_to_ids("\n\n")]
    texts = base.continuations([row["prompt"] for row in rows], do_sample=False, max_new_tokens=24, eos_token_id=stop)
    right: Counter[str] = Counter()
    for row, text in zip(rows, texts, strict=True):
        right[row["family"]] += text.split("\n\n")[0].strip() == row["answer"]
    totals = Counter(row["family"] for row in rows)
    return {"all": right.total() / len(rows), **{name: right[name] / totals[name] for name in totals}}


def perplexity(base: Base) -> float:
    """Perplexity per token on held-out stories, each after BOS."""
    loss = tokens = 0.0
    for text in held_out_text(seed=0):
        ids = base.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss += base.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(loss / tokens)


def exact_match(base: Base, rows: Sequence[Instance]) -> float:
    """Share of rows whose greedy answer is the gold one."""
    texts = base.continuations([row.query for row in rows], do_sample=False, max_new_tokens=24)
    return sum(text.strip() == row.output for text, row in zip(texts, rows, strict=True)) / len(rows)


def synthesis(base: Base, task: Task, grammar: Grammar, prompts: int, options: dict[str, float]) -> dict[str, Any]:
    """How often an instance that the base writes after two demonstrations is a new input of the task."""
    pairs = list(itertools.permutations(task.demonstrations, 2))
    chosen = random.Random(0).sample(pairs, prompts)
    texts = [
        task.train[0].instruction
        + "\n\n"
        + "".join(f"Input: {row.input}\nOutput: {row.output}\n\n" for row in pair)
        + "Input:"
        for pair in chosen
    ]
    set_seed(0)
    started = time.perf_counter()
    written = base.continuations(texts, do_sample=True, max_new_tokens=160, **options)
    seconds = time.perf_counter() - started
    gold = {row.input: row.output for row in (*task.train, *task.evaluation)}
    inputs: list[str] = []
    copies = labels = known = 0
    for pair, text in zip(chosen, written, strict=True):
        for piece in text.split("Input:"):
            parts = piece.split("Output:")
            if len(parts) != 2 or not parts[0].strip() or not parts[1].strip():
                continue
            inputs.append(parts[0].strip())
            copies += inputs[-1] in {row.input for row in pair}
            if inputs[-1] in gold:
                known += 1
                labels += gold[inputs[-1]] == parts[1].strip()
    fitting = [text for text in inputs if grammar.matches(text)]
    train = {row.input for row in task.train}
    return {
        "instances_per_prompt": len(inputs) / prompts,
        "fits_grammar": len(fitting) / len(inputs),
        "copies_demonstration": copies / len(inputs),
        "distinct": len(set(fitting)) / max(1, len(fitting)),
        "not_in_training_set": len(set(fitting) - train) / max(1, len(set(fitting))),
        "right_label_where_known": labels / known if known else None,
        "seconds": seconds,
    }


def tune(base: Base, rows: Sequence[Instance], *, rate: float, epochs: int, seed: int) -> float:
    """AdamW, linear warm-up over 5 %, cosine; loss on the answer and EOS only. Returns the seconds it took."""
    parameters = [p for p in base.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    total = epochs * math.ceil(len(rows) / BATCH_ROWS)
    rng, order, step = random.Random(seed), list(rows), 0
    started = time.perf_counter()
    base.model.train()
    for _ in range(epochs):
        rng.shuffle(order)
        for start in range(0, len(order), BATCH_ROWS):
            scale = min(1.0, (step + 1) / (0.05 * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            base.model(**_batch(base.tokenizer, order[start : start + BATCH_ROWS])).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    base.model.eval()
    return time.perf_counter() - started


def _batch(tokenizer: Any, rows: Sequence[Instance]) -> dict[str, torch.Tensor]:
    prompts = tokenizer([row.query for row in rows])["input_ids"]
    answers = tokenizer([row.output for row in rows], add_special_tokens=False)["input_ids"]
    length = max(len(p) + len(a) + 1 for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        row = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        ids[at, : len(row)] = row
        labels[at, len(prompt) : len(row)] = row[len(prompt) :]
    return {"input_ids": ids, "labels": labels, "attention_mask": (ids != tokenizer.pad_token_id).long()}


def with_tuning(folder: Path, kind: str, seed: int) -> Base:
    """A fresh base, with an adapter when `kind` is lora."""
    base = Base(folder)
    if kind == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(
            r=TUNING["lora"]["rank"],
            lora_alpha=TUNING["lora"]["alpha"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        base.model = get_peft_model(base.model, config)
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="model folder (default: the embedded base)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the tuning runs")
    parser.add_argument("--prompts", type=int, default=120, help="synthesis prompts per task")
    parser.add_argument("--micro-tasks", type=int, default=650)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.model or embedded_base_path()
    stream, base = embedded_stream(), Base(folder)
    report: dict[str, object] = {
        "machine": f"{platform.machine()}, {arguments.threads} thread(s), torch {torch.__version__}",
        "few_shot": few_shot(base, arguments.micro_tasks),
        "perplexity": perplexity(base),
        "zero_shot": {task.name: exact_match(base, task.evaluation) for task in stream},
        "synthesis": {
            name: {
                task.name: synthesis(base, task, Grammar(spec.template), arguments.prompts, options)
                for spec, task in zip(TASKS, stream, strict=True)
            }
            for name, options in SAMPLING.items()
        },
    }
    print(json.dumps(report, indent=1), flush=True)
    _write(arguments.out, report)
    for kind, settings in TUNING.items():
        matrices, seconds = [], []
        for seed in range(arguments.seeds):
            drawn, tuned, matrix = embedded_stream(seed), with_tuning(folder, kind, seed), []
            for task in drawn:
                rate, epochs = settings["rate"], int(settings["epochs"])
                seconds.append(tune(tuned, task.train, rate=rate, epochs=epochs, seed=seed))
                matrix.append([exact_match(tuned, other.evaluation) for other in drawn])
                print(kind, seed, task.name, matrix[-1], flush=True)
            matrices.append(matrix)
        report[kind] = {"settings": settings, "matrices": matrices, "seconds_per_task": sum(seconds) / len(seconds)}
        _write(arguments.out, report)


def _write(path: Path, report: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
