"""Trains, rehearses, generates and measures on the CPU and on another device; run by `test_stand_in.py`.

Usage: python -m tests.device.everything DEVICE FOLDER [LIBRARY]
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from everlearn.data.embedded.stream import embedded_stream
from everlearn.files import write_jsonl
from everlearn.generation.engine import make_generator
from everlearn.generation.protocol import Sampling
from everlearn.models.checking import check_model
from everlearn.models.loading import load_model
from everlearn.recipe import ModelConfig, Recipe, make_recipe
from everlearn.runs.loop import execute
from everlearn.updates import executor
from tests.conftest import make_tiny_model
from tests.device.stand_in import register
from tests.killed import Killed, KilledAt
from tests.tiny_models import RANDOM_SSR
from tests.updates.tiny_runs import tiny_recipe

CASES: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "ssr": ("lora", {**RANDOM_SSR, "max_new_tokens": 60, "ratio": 0.1, "refinement_tokens": 4}, {}),
    "kmeans": ("lora", {"name": "kmeans_rehearsal", "ratio": 0.2, "clusters": 3}, {"gradient_checkpointing": True}),
    "ewc": ("full", {"name": "ewc", "fisher_rows": 4}, {"checkpoint_every": 1, "micro_batch_tokens": 128}),
    "l2": ("full", {"name": "l2"}, {}),
    "gem": ("lora", {"name": "gem", "memory_per_task": 4}, {}),
    "replay": ("full", {"name": "experience_replay+agem"}, {}),
    "float16": ("lora", {"name": "agem", "memory_per_task": 4}, {"checkpoint_every": 1}),
}
"""Tuning, method and training of each run."""
if find_spec("bitsandbytes"):
    CASES["adamw_8bit"] = ("full", {"name": "sequential"}, {"optimizer": "adamw_8bit", "checkpoint_every": 1})


def recipe_for(case: str, device: str, folder: Path, entries: list[dict[str, object]]) -> Recipe:
    """The recipe of one run."""
    tuning, method, training = CASES[case]
    precision = "float16" if case == "float16" and device != "cpu" else "float32"  # which a processor is refused
    return make_recipe(
        {
            "name": case,
            "runs_dir": str(folder / device),
            "cache_dir": str(folder / device / "cache"),
            "model": {"base": str(folder / tuning), "tuning": tuning, "device": device, "dtype": "float32"},
            "stream": {"tasks": entries},
            "method": method,
            "training": {"epochs": 1, "batch_size": 8, "precision": precision, **training},
            "evaluation": {"max_new_tokens": 4, "bootstrap_samples": 100},
        }
    )


def loss_over_quantized(folder: Path, quantization: str, device: str) -> float:
    """Of a few tokens, with gradients for the adapter on the device; whole runs take minutes without kernels."""
    config = ModelConfig(base=str(folder), device=device, dtype="float32", quantization=quantization)
    loaded = load_model(check_model(config, trains=True), trainable=True)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]], device=loaded.device)
    loss = loaded.model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [weight.grad for weight in loaded.model.parameters() if weight.requires_grad]
    assert all(one is not None and one.device.type == loaded.device.type and one.isfinite().all() for one in gradients)
    return float(loss.detach())


def main(other: str, folder: Path) -> None:
    """Runs everything on both devices, into `FOLDER/DEVICE`."""
    tasks = embedded_stream(0).tasks[:2]
    texts = [f"{row.instruction} Input: {row.input} Output: {row.output}" for task in tasks for row in task.train]
    entries: list[dict[str, object]] = []
    for task in tasks:
        entry: dict[str, object] = {"name": task.name, "metric": task.metric, "demonstrations": 3}
        for kind, count in (("train", 24), ("evaluation", 3)):
            path = folder / f"{task.name}.{kind}.jsonl"
            write_jsonl(path, (row.to_json() for row in getattr(task, kind)[:count]))
            entry[kind] = str(path)
        entries.append(entry)
    make_tiny_model(folder / "lora", "llama", texts, marks=("Input:", "Output:"))
    make_tiny_model(folder / "full", "gpt2", texts)
    for device in ("cpu", other):
        for case in CASES:
            recipe = recipe_for(case, device, folder, entries)
            if recipe.training.checkpoint_every == 1:
                with suppress(Killed):
                    execute(recipe, progress=KilledAt(2))
            execute(recipe)
        generator = make_generator(load_model(recipe_for("ssr", device, folder, entries).model))
        generator.generate([[5, 6, 7], [5, 6, 8]], Sampling(max_new_tokens=2))
        assert generator.shares_prefixes, f"generation on {device} shares no prefixes"
        executor.execute(tiny_recipe(folder / device, versions=2, training={"device": device}))
    if other == "cuda" and find_spec("bitsandbytes"):
        # torch lets no device that it does not know take over quantized weights from the processor
        for quantization in ("nf4", "int8"):
            losses = [loss_over_quantized(folder / "lora", quantization, device) for device in ("cpu", other)]
            assert math.isclose(*losses, rel_tol=1e-2), f"{quantization}: {losses}"


if __name__ == "__main__":
    if len(sys.argv) > 3:
        register(Path(sys.argv[3]))
    main(sys.argv[1], Path(sys.argv[2]))
