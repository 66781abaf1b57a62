"""Heads and probes over 15 tasks with a frozen backbone: from kept features against features anew, as published.

    python benchmarks/incremental.py         # writes benchmarks/results/incremental.json, some minutes on one core

60 classes, four to a task, 80 training and 20 test rows each, the embedded base in float32, one thread. One side is a
whole run of `seq` (preset `fixbc_cos`) with probing, from reading the files to the model that is handed back. The
other does what the study's published code does (arXiv 2312.07887), and no more: every epoch computes the features of
its rows batch by batch, every evaluation those of all tests so far, every probing (before the first task and after
each) those of all rows; the four probes by the published schedule on both sides. It computes batches of 32 rows of
like length where the published code takes 4 padded to the longest of the data set, and writes nothing. Time is the
processor's, imports and the first loading of the model left out on both sides. That both see the same features is
checked: the prototypes' scores are equal.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "incremental.json"
GOAL = {"times_as_fast": 10.0}
TASKS, CLASSES, TRAIN, TEST, EPOCHS, BATCH = 15, 4, 80, 20, 5, 32
WORDS = "the parcel went to a small red house near old harbour before noon and nobody saw who had left it".split()


def write_tasks(folder: Path) -> list[dict[str, Any]]:
    """Rows of some twenty words, of which three tell the class."""
    draw, entries = random.Random(0), []
    marks = [[draw.choice(WORDS) + draw.choice(WORDS) for _ in range(4)] for _ in range(TASKS * CLASSES)]
    for task in range(TASKS):
        entry: dict[str, Any] = {"name": f"task-{task + 1}", "demonstrations": 0}
        for part, count in (("train", TRAIN), ("evaluation", TEST)):
            entry[part] = str(folder / f"{task}.{part}.jsonl")
            with open(entry[part], "w", encoding="utf-8") as file:
                for number in range(count):
                    for label in range(task * CLASSES, (task + 1) * CLASSES):
                        words = [*draw.choices(WORDS, k=14), *draw.sample(marks[label], 3), f"{part}{number}"]
                        draw.shuffle(words)
                        row = {"input": f"Input sentence: {' '.join(words)}\n The label:", "output": f"class {label}"}
                        file.write(json.dumps(row) + "\n")
        entries.append(entry)
    return entries


def recipe_of(folder: Path, entries: list[dict[str, Any]]) -> Any:
    """The run with kept features."""
    from everlearn.recipe import make_recipe

    return make_recipe(
        {
            "name": "kept",
            "runs_dir": str(folder / "runs"),
            "model": {"base": "embedded", "dtype": "float32", "device": "cpu"},
            "stream": {"tasks": entries, "scenario": "class_incremental"},
            "method": {"name": "seq", "preset": "fixbc_cos"},
            "training": {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 1e-5},
            "evaluation": {"general": False, "max_new_tokens": 1, "probing": {"schedule": "published"}},
        }
    )


def as_published(recipe: Any) -> list[list[float]]:
    """The other side; the prototypes' scores of all tasks at each probing."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy, normalize

    from everlearn.data.prompts import get_template
    from everlearn.data.stream import load_stream
    from everlearn.evaluation.probing import PROBES, Rows, fitted, predicted
    from everlearn.models.features import last_prompt_states
    from everlearn.models.loading import load_model

    loaded = load_model(recipe.model)
    stream = load_stream(recipe.stream, seed=recipe.seed, tokenizer=loaded.tokenizer)
    template = get_template(recipe.model.template_name, loaded.tokenizer)
    column = {name: at for at, name in enumerate(stream.classes)}
    prompts, labels = {}, {}
    for task in stream:
        for part in ("train", "evaluation"):
            rows = getattr(task, part)
            prompts[task.name, part] = [template.prompt_ids(row, loaded.tokenizer) for row in rows]
            labels[task.name, part] = np.array([column[row.output] for row in rows])
    names, width = stream.names, loaded.model.config.hidden_size
    draws, scores = np.random.default_rng(0), []

    def probe() -> None:
        features = {key: last_prompt_states(loaded, ids) for key, ids in prompts.items()}
        whole = Rows(
            np.concatenate([features[name, "train"] for name in names]),
            np.concatenate([labels[name, "train"] for name in names]),
            len(column),
        )
        for kind in PROBES:
            head = fitted(kind, whole, "published", 0)
            found = [
                float((predicted(kind, head, features[name, "evaluation"]) == labels[name, "evaluation"]).mean())
                for name in names
            ]
        scores.append([100 * score for score in found])

    probe()
    heads: list[torch.Tensor] = []
    for at, name in enumerate(names):
        bound = width**-0.5
        head = torch.from_numpy(draws.uniform(-bound, bound, (CLASSES, width))).float().requires_grad_()
        heads.append(head)
        optimizer = torch.optim.AdamW([head], lr=1e-3)
        ids, wanted = prompts[name, "train"], torch.from_numpy(labels[name, "train"])
        for _ in range(EPOCHS):
            for part in torch.from_numpy(draws.permutation(len(ids))).split(BATCH):
                states = torch.from_numpy(last_prompt_states(loaded, [ids[place] for place in part]))
                logits = normalize(states, dim=-1) @ normalize(torch.cat(heads), dim=-1).T
                optimizer.zero_grad()
                cross_entropy(logits, wanted[part]).backward()
                optimizer.step()
        head.requires_grad_(False)
        for other in names[: at + 1]:
            states = torch.from_numpy(last_prompt_states(loaded, prompts[other, "evaluation"]))
            (normalize(states, dim=-1) @ normalize(torch.cat(heads), dim=-1).T).argmax(-1)
        probe()
    return scores


def main() -> None:
    """Measures both ways and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    import torch

    from everlearn.environment import machine, versions
    from everlearn.files import write_json
    from everlearn.runs.loop import execute

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        entries = write_tasks(folder)
        execute(recipe_of(folder / "first", entries[:2]))  # so that what is imported and loaded once is there
        recipe = recipe_of(folder, entries)
        began = time.process_time()
        kept = execute(recipe)
        kept_s = time.process_time() - began
        began = time.process_time()
        scores = as_published(recipe)
        anew_s = time.process_time() - began
        assert kept.probing is not None
        found = kept.probing["probes"]["cosine_prototype"]  # type: ignore[index]
        expected = [found["base"], *found["values"]]
    differing = max(
        abs(a - b) for one, other in zip(scores, expected, strict=True) for a, b in zip(one, other, strict=True)
    )
    result = {
        "goal": GOAL,
        "machine": machine(),
        "versions": versions(),
        "tasks": TASKS,
        "rows": TASKS * CLASSES * (TRAIN + TEST),
        "kept_s": round(kept_s, 1),
        "anew_s": round(anew_s, 1),
        "times_as_fast": round(anew_s / kept_s, 1),
        "largest_difference_of_prototype_scores": differing,
    }
    print({key: result[key] for key in list(result)[3:]})
    write_json(args.out, result)


if __name__ == "__main__":
    main()
