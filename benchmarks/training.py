"""A training step on SuperNI-like rows: everlearn against TRL's SFTTrainer with its best settings.

    python benchmarks/training.py            # writes benchmarks/results/training.json, about five minutes on 2 cores
    python benchmarks/training.py --model MODEL --batches 8      # a pretrained one: folder, GGUF file or hub name

Both train the same adapter on the same random Llama with a vocabulary of 32,000, on the same token ids, with the
loss on the answer alone and 32 rows per optimizer step. TRL is first tried with each of its settings that keep this
loss (Liger's kernels, where installed, included), in bfloat16 and in float32; the fastest one is then measured side
by side with everlearn, each run in a process of its own, in turns. Speed counts the tokens of the rows, padding
never. Memory is the peak of the resident set while training, less what the process held just before.

Without Triton, thus on every CPU, TRL 1.16 computes the logits of all positions. No setting changes that, and most of
the gap comes from it; to show the rest, TRL is also measured with a patch that makes it score answer tokens alone.

With a model of one's own the result is training_<model>.json, and `--batches` leaves out those of TRL's settings that
hold more rows at once. Token ids are the same: speed does not depend on what they mean.

Rows: the real SuperNI files beside the repository where they are, else random ones with the lengths of the table in
the method's specification (words of definition, input and output). Tokens: pieces of up to five letters, numbered
by a hash. Two workloads: the rows of one task, which share their definition, and a late stage of SSR, whose new
task is mixed with rehearsed rows of four earlier ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

RESULTS = Path(__file__).parent / "results" / "training.json"
DATA = Path(__file__).parents[2] / "shared" / "data" / "superni"
VOCABULARY, BOS, EOS, PAD = 32000, 1, 2, 0
BATCH = 32
TARGETS = ["q_proj", "v_proj"]
"""What `model.lora.targets: auto` takes of a Llama; TRL wants them by name."""

WORDS = {  # definition, mean and largest input, mean and largest output
    "qa": (81, 82, 162, 8, 38),
    "qg": (79, 111, 274, 10, 26),
    "sa": (31, 57, 329, 1, 1),
    "sum": (37, 214, 371, 17, 57),
    "trans": (17, 17, 91, 17, 84),
}
WORKLOADS = {
    "one task": {"qa": 128},
    "late stage with rehearsal": {"trans": 80, "qa": 12, "qg": 12, "sa": 12, "sum": 12},
}
TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "batches of 32": {"per_device_train_batch_size": 32},
    "batches of 32, grouped by length": {
        "per_device_train_batch_size": 32,
        "train_sampling_strategy": "group_by_length",
    },
    "4 x 8": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
    "4 x 8, grouped by length": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "train_sampling_strategy": "group_by_length",
    },
    "4 x 8, padding-free": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "padding_free": True,
    },
}
TRL_SETTINGS |= {f"{name}, float32": {**TRL_SETTINGS[name], "bf16": False} for name in list(TRL_SETTINGS)[1::2]}
if find_spec("liger_kernel"):
    TRL_SETTINGS |= {f"{name}, Liger": {**TRL_SETTINGS[name], "use_liger_kernel": True} for name in list(TRL_SETTINGS)}


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt (BOS first) and of its answer (EOS last)."""

    prompt: list[int]
    answer: list[int]


def workload_rows(name: str) -> list[Row]:
    """The rows of a workload, always the same."""
    draw = random.Random(0)
    rows = [row for task, count in WORKLOADS[name].items() for row in task_rows(task, count, draw)]
    draw.shuffle(rows)
    return rows


def task_rows(task: str, count: int, draw: random.Random) -> Iterable[Row]:
    """Leading rows of a task's training file, or random ones of its lengths."""
    file = DATA / f"{task}.train.jsonl.gz"
    if file.is_file():
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for _, line in zip(range(count), lines, strict=False):
                row = json.loads(line)
                yield Row([BOS, *tokens(row["full_prompt"])], [*tokens(row["output"]), EOS])
        return
    definition_words, mean_in, most_in, mean_out, most_out = WORDS[task]
    definition = words(definition_words, random.Random(task))
    for _ in range(count):
        given = words(max(1, min(most_in, round(draw.lognormvariate(0, 0.45) * mean_in * 0.9))), draw)
        answer = words(max(1, min(most_out, round(draw.lognormvariate(0, 0.6) * mean_out * 0.85))), draw)
        yield Row([BOS, *tokens(f"{definition}\n\n{given}")], [*tokens(answer), EOS])


def words(count: int, draw: random.Random) -> str:
    """Random words of English lengths."""
    return " ".join("".join(draw.choices("etaoinshrdlu", k=draw.choice((2, 3, 3, 4, 5, 6, 8)))) for _ in range(count))


def tokens(text: str) -> list[int]:
    """Pieces of up to five letters, single other characters; ids by a hash."""
    return [3 + zlib.crc32(piece.encode()) % (VOCABULARY - 3) for piece in re.findall(r"\w{1,5}|[^\w\s]", text)]


def make_model(folder: Path) -> None:
    """A random Llama of 13 million weights and a tokenizer of 32,000 entries."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {f"t{at}": at for at in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t3")),
        bos_token="t1",
        eos_token="t2",
        pad_token="t0",
    )
    tokenizer.save_pretrained(folder)


class GivenTokens:
    """A template whose rows are token ids already."""

    name = "given"

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def prompt_ids(self, instance: Any, tokenizer: Any, max_tokens: int | None = None) -> list[int]:
        return self.rows[int(instance.id)].prompt

    def target_ids(self, instance: Any, tokenizer: Any, max_tokens: int | None = None) -> list[int]:
        return self.rows[int(instance.id)].answer


def train_everlearn(folder: Path, rows: list[Row]) -> dict[str, float]:
    """One epoch with everlearn."""
    from everlearn.data.instance import Instance
    from everlearn.models.loading import load_model
    from everlearn.progress import LineProgress
    from everlearn.recipe import ModelConfig, TrainingConfig
    from everlearn.training.stage import train_stage

    loaded = load_model(ModelConfig(base=str(folder), device="cpu"), trainable=True)
    instances = [Instance("", "", "", "task", id=str(at)) for at in range(len(rows))]
    config = TrainingConfig(epochs=1, batch_size=BATCH)
    before = resident_mib(reset=True)
    with tempfile.TemporaryDirectory() as out:
        summary = train_stage(
            loaded,
            instances,
            config,
            GivenTokens(rows),  # type: ignore[arg-type]
            seed=0,
            folder=Path(out),
            progress=LineProgress(),
            what="benchmark",
        )
        steps = [json.loads(line) for line in (Path(out) / "history.jsonl").read_text().splitlines()]
    assert summary["packed"], "the fast path was not taken"
    loss = fmean(step["loss"] for step in steps)
    return {"seconds": float(summary["seconds"]), "memory_mib": peak_mib() - before, "loss": loss}  # type: ignore[arg-type]


def train_trl(folder: Path, rows: list[Row], settings: dict[str, Any]) -> dict[str, float]:
    """One epoch with TRL."""
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from everlearn.recipe import LoraConfig as Defaults

    model = AutoModelForCausalLM.from_pretrained(folder)
    examples = [
        {"input_ids": row.prompt + row.answer, "labels": [-100] * len(row.prompt) + row.answer} for row in rows
    ]
    lora = Defaults()
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=TARGETS,
        task_type=TaskType.CAUSAL_LM,
    )
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            num_train_epochs=1,
            learning_rate=2e-4,
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_strategy="no",
            disable_tqdm=True,
            **{"bf16": uses_bfloat16(), **settings},
        )
        trainer = SFTTrainer(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(examples),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=adapter,
        )
        before = resident_mib(reset=True)
        began = time.perf_counter()
        result = trainer.train()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "memory_mib": peak_mib() - before, "loss": result.training_loss}


def uses_bfloat16() -> bool:
    """Both sides compute in the format that everlearn chooses here."""
    import torch

    from everlearn.devices import autocast_format

    return autocast_format("auto", torch.device("cpu")) is not None


def resident_mib(*, reset: bool = False) -> float:
    """Resident memory now; `reset` lets the peak start anew from here."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_mib() -> float:
    """Largest resident memory since the last reset."""
    return _status("VmHWM")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(job: dict[str, Any]) -> None:
    """Runs one measurement and prints it as JSON."""
    rows = workload_rows(job["workload"])[: job["rows"]]
    folder = Path(job["folder"])
    if job["patched"]:
        import trl.trainer.utils

        trl.trainer.utils._use_triton = lambda device: True  # read by the fused head alone: score answer tokens only
    found = train_everlearn(folder, rows) if job["settings"] is None else train_trl(folder, rows, job["settings"])
    count = sum(len(row.prompt) + len(row.answer) for row in rows)
    print(json.dumps({**found, "tokens": count, "tokens_per_second": count / found["seconds"]}))


def measure(
    folder: Path, workload: str, rows: int, settings: dict[str, Any] | None, *, patched: bool = False
) -> dict[str, float]:
    """One measurement in a process of its own; settings None: everlearn."""
    job = {"folder": str(folder), "workload": workload, "rows": rows, "settings": settings, "patched": patched}
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def try_settings(folder: Path, most: int) -> dict[str, dict[str, float]]:
    """One optimizer step of TRL with each of its settings that hold at most so many rows, slowest last."""
    tried = {}
    for name, settings in TRL_SETTINGS.items():
        if settings["per_device_train_batch_size"] > most:
            continue
        tried[name] = measure(folder, "one task", BATCH, settings)
        print(f"TRL, {name}: {describe(tried[name])}", flush=True)
    return dict(sorted(tried.items(), key=lambda item: -item[1]["tokens_per_second"]))


def compare(folder: Path, workload: str, best: str, rounds: int) -> dict[str, Any]:
    """everlearn, TRL at its best and TRL patched, in turns."""
    turns: list[dict[str, dict[str, float]]] = []
    for _ in range(rounds):
        turn = {
            "everlearn": measure(folder, workload, 2 * BATCH, None),
            "trl": measure(folder, workload, 2 * BATCH, TRL_SETTINGS[best]),
            "trl_patched": measure(folder, workload, 2 * BATCH, TRL_SETTINGS[best], patched=True),
        }
        turns.append(turn)
        for way, result in turn.items():
            print(f"{workload}, {way}: {describe(result)}", flush=True)
    ratios = {
        f"{field}_against_{other}": round(median(t["everlearn"][field] / t[other][field] for t in turns), 3)
        for field in ("tokens_per_second", "memory_mib")
        for other in ("trl", "trl_patched")
    }
    return {"rows": dict(WORKLOADS[workload]), "ratios": ratios, "turns": turns}


def describe(result: dict[str, float]) -> str:
    """Speed and memory in words."""
    return f"{result['tokens_per_second']:,.0f} tokens/s, {result['memory_mib']:,.0f} MiB"


def main() -> None:
    """Measures all workloads and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help="a pretrained model: folder, GGUF file or hub name (nothing: random weights)")
    parser.add_argument("--batches", type=int, default=BATCH, help="most rows that TRL may hold at once")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    from importlib.metadata import version

    from everlearn.environment import machine, versions
    from everlearn.files import write_json
    from everlearn.models.sources import find_base
    from everlearn.recipe import ModelConfig

    began = time.perf_counter()
    name = args.model and re.sub(r"[^A-Za-z0-9.]+", "-", Path(args.model).name.removesuffix(".gguf"))
    with tempfile.TemporaryDirectory() as made:
        folder = find_base(ModelConfig(base=args.model)).folder if name else Path(made)
        if not name:
            make_model(folder)
        tried = try_settings(folder, args.batches)
        best = next(iter(tried))
        found = {workload: compare(folder, workload, best, args.rounds) for workload in args.workloads.split(",")}
    for workload, result in found.items():
        print(workload, result["ratios"])
    write_json(
        args.out or (RESULTS.with_name(f"training_{name}.json") if name else RESULTS),
        {
            "model": name or "random Llama of 13 million weights",
            "goal": {"tokens_per_second_against_trl": 1.5, "memory_mib_against_trl": 0.6},
            "machine": machine(),
            "versions": {**versions(), "trl": version("trl")},
            "data": "real SuperNI rows" if DATA.is_dir() else "random rows of SuperNI's lengths",
            "format": "bfloat16" if uses_bfloat16() else "float32",
            "trl_best_settings": best,
            "workloads": found,
            "trl_settings_tried": tried,
            "seconds": round(time.perf_counter() - began),
        },
    )


if __name__ == "__main__":
    main()
