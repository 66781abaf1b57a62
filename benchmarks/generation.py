"""Generation: the engine against `model.generate` on the same prompts, lengths and model, side by side.

Workloads, all from real SuperNI rows: SSR's synthesis prompts of `pos` and `qa` (all ordered pairs of 20
demonstrations; greedy, and sampled three times as published), evaluation prompts that share their instruction, and
prompts that share nothing. The model is a randomly initialised Llama in float32 (speed does not depend on the
weights), the tokenizer a BPE of 8,192 tokens trained on the rows, so that prompts are about as long as in the paper.

How long a completion is comes from the data: a completion ends after as many tokens as a row of the task has (one
instance for synthesis, the gold answer for evaluation). Both engines get the same lengths; `generate` through a
StoppingCriteria that ends each row by itself, with prompts sorted by length and its best batch size of several.
Where decoding is greedy, the two outputs are compared token by token.

    python benchmarks/generation.py          # writes benchmarks/results/generation.json, about 40 minutes on one core
    python benchmarks/generation.py --only evaluation          # measures these again, keeps the others
    python benchmarks/generation.py --model MODEL --dtype bfloat16   # a pretrained one: folder, GGUF file or hub name

With a model of one's own prompts are in its own tokens, and the result is generation_<model>_<dtype>.json.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)

from everlearn.environment import machine, versions
from everlearn.files import write_json
from everlearn.generation import engine
from everlearn.generation.engine import TransformersGenerator
from everlearn.generation.protocol import Sampling
from everlearn.models.loading import load_model
from everlearn.recipe import ModelConfig

RESULTS = Path(__file__).parent / "results" / "generation.json"
DATA = Path(__file__).parents[2] / "shared" / "data" / "superni"
TASKS = ("pos", "qa")
UNSHARED_TASKS = ("sa", "expl", "dsg")
BATCH_SIZES = (4, 8, 16, 32, 64, 96)
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
PUBLISHED = {"temperature": 0.9, "top_p": 0.6, "top_k": 50, "repetition_penalty": 1.2}
"""SSR's sampling; top-k is the default of Transformers at that time."""


@dataclass(frozen=True)
class Workload:
    """Prompts with the number of tokens that each completion gets."""

    name: str
    prompts: list[list[int]]
    lengths: list[int]
    target: float
    samples: int = 1

    def part(self, count: int) -> Workload:
        """A part spread over the whole, for choosing a batch size."""
        chosen = sorted(random.Random(0).sample(range(len(self.prompts)), min(count, len(self.prompts))))
        prompts, lengths = [self.prompts[i] for i in chosen], [self.lengths[i] for i in chosen]
        return Workload(self.name, prompts, lengths, self.target, self.samples)


class RowLengths(StoppingCriteria):
    """Ends row i after `lengths[i]` new tokens."""

    def __init__(self, lengths: list[int], prompt_length: int) -> None:
        self._lengths = torch.tensor(lengths)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        """Which rows are done."""
        return self._lengths <= input_ids.shape[1] - self._prompt_length


def with_generate(model: LlamaForCausalLM, work: Workload, batch_size: int) -> list[list[list[int]]]:
    """`model.generate` on batches of prompts sorted by length, padded on the left."""
    sampled = work.samples > 1
    drawn = {"do_sample": True, "num_return_sequences": work.samples, **PUBLISHED}
    options = drawn if sampled else {"do_sample": False}
    prompts_at_once = max(1, batch_size // work.samples)
    order = sorted(range(len(work.prompts)), key=lambda i: len(work.prompts[i]))
    results: list[list[list[int]]] = [[] for _ in order]
    for start in range(0, len(order), prompts_at_once):
        chosen = order[start : start + prompts_at_once]
        longest = max(len(work.prompts[i]) for i in chosen)
        ids = torch.zeros((len(chosen), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, longest - len(work.prompts[i]) :] = torch.tensor(work.prompts[i])
            mask[row, longest - len(work.prompts[i]) :] = 1
        lengths = [work.lengths[i] for i in chosen for _ in range(work.samples)]
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(lengths),
            stopping_criteria=StoppingCriteriaList([RowLengths(lengths, longest)]),
            pad_token_id=0,
            eos_token_id=None,
            **options,
        )
        for row, length in enumerate(lengths):
            results[chosen[row // work.samples]].append(output[row, longest : longest + length].tolist())
    return results


def with_engine(model: LlamaForCausalLM, tokenizer: Any, work: Workload) -> list[list[list[int]]]:
    """The engine of everlearn, with a limit of its own for each prompt."""
    settings = PUBLISHED if work.samples > 1 else {}
    sampling = Sampling(samples_per_prompt=work.samples, **settings)  # type: ignore[arg-type]
    generator = TransformersGenerator(model, tokenizer)
    with (  # as long as the data says, whatever the model would end
        patch.object(engine, "room_of", lambda index, *_: work.lengths[index]),
        patch.object(engine, "end_tokens", lambda *_: set()),
    ):
        completions = generator.generate(work.prompts, sampling)
    for of_prompt, length in zip(completions, work.lengths, strict=True):
        assert all(len(one.token_ids) == length for one in of_prompt), "both write the same number of tokens"
    return [[list(completion.token_ids) for completion in of_prompt] for of_prompt in completions]


def compare(
    model: LlamaForCausalLM, tokenizer: Any, work: Workload, repeats: int, sizes: Sequence[int]
) -> dict[str, Any]:
    """Times both engines in turn, `generate` at the batch size that was best on a part of the prompts."""
    part = work.part(48 // work.samples)
    trials = {size: _seconds(lambda size=size: with_generate(model, part, size))[0] for size in sizes}
    best = min(trials, key=lambda size: trials[size])
    _seconds(lambda: with_engine(model, tokenizer, part))
    ours, theirs = [], []
    equal = None
    for repeat in range(repeats):
        turns = [lambda: with_engine(model, tokenizer, work), lambda: with_generate(model, work, best)]
        timed = {i: _seconds(turns[i]) for i in ((0, 1) if repeat % 2 == 0 else (1, 0))}
        ours.append(timed[0][0])
        theirs.append(timed[1][0])
        if work.samples == 1 and equal is None:
            equal = sum(a == b for a, b in zip(timed[0][1], timed[1][1], strict=True))
    tokens = sum(work.lengths) * work.samples
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "workload": work.name,
        "prompts": len(work.prompts),
        "samples": work.samples,
        "prompt_tokens_mean": round(statistics.mean(map(len, work.prompts)), 1),
        "new_tokens_mean": round(statistics.mean(work.lengths), 1),
        "equal_greedy_outputs": equal,
        "generate_batch_size": best,
        "generate_batch_trials_s": {str(size): round(seconds, 3) for size, seconds in trials.items()},
        "engine_s": [round(seconds, 3) for seconds in ours],
        "generate_s": [round(seconds, 3) for seconds in theirs],
        "engine_tokens_per_s": round(tokens / statistics.median(ours), 1),
        "generate_tokens_per_s": round(tokens / statistics.median(theirs), 1),
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "target": work.target,
        "reached": statistics.median(ratios) >= work.target,
    }


def synthesis(task: str, rows: list[dict[str, str]], tokenizer: Any, firsts: int, samples: int = 1) -> Workload:
    """SSR's prompts; `firsts` of the 20 first demonstrations, each with all 19 second ones."""
    definition = _definition(rows[0])
    blocks = [f"Input: {row['input']}\nOutput: {row['output']}\n\n" for row in rows[:20]]
    texts = [
        f"{definition}\n\n{blocks[a]}{blocks[b]}Input:" for a, b in itertools.permutations(range(20), 2) if a < firsts
    ]
    draw = random.Random(f"{task} {samples}")
    instances = [f" {row['input']}\nOutput: {row['output']}\n\n" for row in draw.choices(rows, k=len(texts))]
    name = f"synthesis {task}, {'greedy' if samples == 1 else 'sampled'}"
    return Workload(name, _ids(texts, tokenizer), [len(ids) for ids in _ids(instances, tokenizer)], 3.0, samples)


def evaluation(task: str, rows: list[dict[str, str]], tokenizer: Any, count: int) -> Workload:
    """Instruction and input; the answer as long as the gold one with its end token."""
    texts = [row["full_prompt"] for row in rows[:count]]
    answers = _ids([row["output"] for row in rows[:count]], tokenizer)
    return Workload(f"evaluation {task}", _ids(texts, tokenizer), [len(ids) + 1 for ids in answers], 1.5)


def unshared(rows: list[dict[str, str]], tokenizer: Any, count: int) -> Workload:
    """Inputs without instruction, none beginning like another, in mixed order."""
    random.Random(0).shuffle(rows)
    answers = _ids([row["output"] for row in rows[:count]], tokenizer)
    prompts = _ids([row["input"] for row in rows[:count]], tokenizer)
    return Workload("unshared prompts", prompts, [len(ids) + 1 for ids in answers], 1.0)


def make_model(vocabulary: int) -> LlamaForCausalLM:
    """About 17 million random weights, spread so that greedy choices are not near ties."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, vocab_size=vocabulary, max_position_embeddings=2048, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model


def read_model(base: str, dtype: str) -> tuple[Any, Any]:
    """A pretrained model and its tokenizer; it decodes greedily, whatever its own settings are."""
    loaded = load_model(ModelConfig.model_validate({"base": base, "dtype": dtype, "device": "cpu"}))
    loaded.model.generation_config = GenerationConfig()
    return loaded.model.eval(), loaded.tokenizer


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 8,192 tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=8192, special_tokens=["<pad>", "</s>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")


def main() -> None:
    """Runs all workloads and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of SuperNI rows (*.jsonl.gz)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", help="a pretrained model: folder, GGUF file or hub name (nothing: random weights)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of --model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--firsts", type=int, default=5, help="first demonstrations of 20 used (each with 19 second)")
    parser.add_argument("--evaluations", type=int, default=96, help="evaluation prompts a task")
    parser.add_argument("--only", default="", help="only workloads whose name holds this")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--key-heads", type=int, default=6, help="key-value heads of 6 (fewer: grouped queries)")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"no folder {arguments.data}: give the folder of SuperNI rows with --data; nothing was measured.")
        return
    SHAPE["num_key_value_heads"] = arguments.key_heads
    name = arguments.model and re.sub(r"[^A-Za-z0-9.]+", "-", Path(arguments.model).name.removesuffix(".gguf"))
    out = arguments.out or (RESULTS.with_name(f"generation_{name}_{arguments.dtype}.json") if name else RESULTS)
    rows = {task: _rows(arguments.data / f"{task}.train.jsonl.gz") for task in (*TASKS, *UNSHARED_TASKS)}
    if arguments.model:
        model, tokenizer = read_model(arguments.model, arguments.dtype)
        shape = {"name": name, "dtype": arguments.dtype}
    else:
        texts = [row["full_prompt"] + row["output"] for task in rows.values() for row in task[:400]]
        tokenizer = make_tokenizer(texts)
        model, shape = make_model(len(tokenizer)), SHAPE
    workloads = [synthesis(task, rows[task], tokenizer, arguments.firsts) for task in TASKS]
    workloads += [synthesis(task, rows[task], tokenizer, max(1, arguments.firsts // 2), samples=3) for task in TASKS]
    workloads += [evaluation(task, rows[task], tokenizer, arguments.evaluations) for task in TASKS]
    mixed = [row for task in UNSHARED_TASKS for row in rows[task][: arguments.evaluations]]
    workloads.append(unshared(mixed, tokenizer, arguments.evaluations))
    model.generation_config.eos_token_id = None
    found = json.loads(out.read_text())["results"] if out.exists() else []
    results = {result["workload"]: result for result in found}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for work in workloads:
        if arguments.only not in work.name:
            continue
        results[work.name] = compare(model, tokenizer, work, arguments.repeats, arguments.batch_sizes)
        print(json.dumps(results[work.name]), flush=True)
        write_json(
            out,
            {
                "what": __doc__.split("\n")[0] if __doc__ else "",
                "machine": machine(),
                "versions": versions(),
                "model": {**shape, "parameters": parameters, "vocabulary": len(tokenizer)},
                "results": [results[work.name] for work in workloads if work.name in results],
            },
        )


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _definition(row: dict[str, str]) -> str:
    return row["full_prompt"].split("\n\n")[0]


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _seconds(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    with torch.inference_mode():
        result = work()
    return time.perf_counter() - began, result


if __name__ == "__main__":
    main()
