"""The whole five-stage SSR run on the embedded base, ours against the published way of doing the same steps.

The published scripts train with Transformers' Trainer on batches padded to their longest row, with gradient
checkpointing on, and generate one instance at a time with `model.generate`. This benchmark runs the same recipe
through the same stage loop, once with everlearn's trainer and generation engine and once with those two replaced;
everything else (prompts, parsing, selection, metrics) is the same code. A third run leaves gradient checkpointing
off, which a model as small as the embedded base does not need. Every run has a process and a folder of its own, so
nothing is shared.

Measured with both presets of SSR: `faithful` makes the steps of the published scripts (all ordered pairs of the
demonstrations, three samples each), `improved` is what the quickstart runs and synthesizes an eighth of that.

    python benchmarks/pipeline.py            # writes benchmarks/results/pipeline.json, 40 minutes on one core
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

import everlearn.runs.models_at_hand as models_at_hand
import everlearn.training.stage as stage_training
from everlearn.devices import autocast_format
from everlearn.environment import machine, versions
from everlearn.files import write_json
from everlearn.generation.protocol import Completion, GenerationProgress, Sampling
from everlearn.progress import make_progress
from everlearn.recipe import load_recipe
from everlearn.runs.loop import RunResult, execute

RESULTS = Path(__file__).parent / "results" / "pipeline.json"
CHECKPOINTING = {"published": True, "published_without_checkpointing": False}
"""Whether the Trainer recomputes activations, by way."""


class OneAtATime:
    """`model.generate` on one prompt and one sample after another, stopping at end token and stop strings."""

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: GenerationProgress | None = None,
    ) -> list[list[Completion]]:
        """One call of `model.generate` for each completion."""
        torch.manual_seed(sampling.seed)
        answers: list[list[Completion]] = []
        written = 0
        for done, prompt in enumerate(prompts, 1):
            answers.append([self._complete(list(prompt), sampling) for _ in range(sampling.samples_per_prompt)])
            written += sum(len(completion.token_ids) for completion in answers[-1])
            if progress:
                progress(done, len(prompts), written)
        return answers

    def _complete(self, prompt: list[int], sampling: Sampling) -> Completion:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        room = min(sampling.max_new_tokens, (sampling.max_length or self.loaded.context_length) - len(prompt))
        sampled = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        ids = torch.tensor([prompt], device=self.loaded.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=room,
                do_sample=sampling.temperature > 0,
                repetition_penalty=sampling.repetition_penalty,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **(sampled if sampling.temperature > 0 else {}),
                **({"stop_strings": list(sampling.stop), "tokenizer": tokenizer} if sampling.stop else {}),
            )[0, len(prompt) :].tolist()
        reason = "length"
        if tokenizer.eos_token_id in output:
            output, reason = output[: output.index(tokenizer.eos_token_id)], "eos"
        text = tokenizer.decode(output, skip_special_tokens=True)
        cuts = [text.index(stop) for stop in sampling.stop if stop in text]
        if cuts:
            text, reason = text[: min(cuts)], "stop"
        return Completion(text, tuple(output), reason)


def plain_trainer(
    loaded: Any,
    rows: Any,
    config: Any,
    template: Any,
    *,
    seed: int,
    folder: Path,
    mixture: Any,
    checkpointing: bool,
    **_: Any,
) -> dict:
    """Transformers' Trainer on batches padded to their longest row, the logits of all positions computed."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = loaded.tokenizer
    examples = []
    for row in [*rows, *mixture.rows]:
        prompt = template.prompt_ids(row, tokenizer, config.max_prompt_tokens)
        target = template.target_ids(row, tokenizer, config.max_target_tokens)
        examples.append({"input_ids": prompt + target, "labels": [-100] * len(prompt) + target})
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=loaded.model,
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=config.epochs,
                per_device_train_batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                lr_scheduler_type=config.scheduler,
                warmup_steps=config.warmup_ratio,
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                gradient_checkpointing=checkpointing,
                bf16=autocast_format(config.precision, loaded.device) is not None,
                seed=seed,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                use_cpu=loaded.device.type == "cpu",
            ),
            train_dataset=examples,
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        )
        trainer.train()
    loaded.model.gradient_checkpointing_disable()
    loaded.model.eval()
    (folder / "history.jsonl").write_text("")
    return {"steps": trainer.state.global_step}


def seconds_by_step(result: RunResult) -> dict[str, float]:
    """Seconds spent in each kind of step, from the manifest."""
    steps = json.loads((result.folder / "manifest.json").read_text())["steps"]
    spent: dict[str, float] = {}
    for place, entry in steps.items():
        kind = place.split("/")[2]
        spent[kind] = spent.get(kind, 0.0) + entry["seconds"]
    return {kind: round(seconds, 2) for kind, seconds in spent.items()}


def run_once(way: str, preset: str, overrides: dict[str, object]) -> dict[str, Any]:
    """One run of the recipe, with its seconds and scores."""
    if way in CHECKPOINTING:
        for place, name in ((models_at_hand.ModelsAtHand, "generator_for"), (stage_training, "train_stage")):
            assert hasattr(place, name), f"{name} has moved, so nothing would be replaced"
        models_at_hand.ModelsAtHand.generator_for = lambda _, loaded: OneAtATime(loaded)  # type: ignore[assignment, method-assign]
        stage_training.train_stage = partial(plain_trainer, checkpointing=CHECKPOINTING[way])
    with tempfile.TemporaryDirectory() as scratch:
        recipe = load_recipe(
            "embedded", {"method.preset": preset, **overrides, "runs_dir": scratch, "name": f"{way}-{preset}"}
        )
        began = time.perf_counter()
        result = execute(recipe, progress=make_progress())
        return {
            "seconds": round(time.perf_counter() - began, 1),
            "by_step": seconds_by_step(result),
            "matrix": result.matrix["values"],
            "metrics": {name: result.metrics[name] for name in ("AR", "BWT", "FWT")},
        }


def run_all(preset: str, overrides: dict[str, object]) -> dict[str, Any]:
    """One run each way, one after another, each in a process of its own."""
    runs: dict[str, Any] = {}
    for way in ("everlearn", *CHECKPOINTING):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            runs[way] = pool.apply(run_once, (way, preset, overrides))
        print(f"{preset}, {way}: {runs[way]['seconds']} s", flush=True)
    faster = {way: round(runs[way]["seconds"] / runs["everlearn"]["seconds"], 2) for way in CHECKPOINTING}
    print(f"{preset}: {faster} times as long as everlearn", flush=True)
    return {"times_faster": faster, "runs": runs}


def main() -> None:
    """Runs both and writes the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", default="faithful,improved")
    parser.add_argument("--set", action="append", default=[], help="recipe keys, to try it at a smaller size")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    overrides = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
    found = {preset: run_all(preset, overrides) for preset in args.presets.split(",")}
    write_json(args.out, {"machine": machine(), "versions": versions(), "goal": 5.0, "presets": found})


if __name__ == "__main__":
    main()
