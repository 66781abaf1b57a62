"""Words with BIO tags, ten entity types in four tasks: what plain heads, SEQ* and replay keep.

    python benchmarks/words.py --seeds 42    # writes benchmarks/results/words.json, some minutes on one core

Sentences are drawn from the skeletons of the embedded world; the fillers of ten kinds of slots are entities, those of
others are background. 1,000 sentences to train, 300 to test, the embedded base with all weights. Rows of the table:
macro F1 over all types after the last stage, its mean over the stages, and forgetting, as the study of SEQ* has them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "words.json"
TYPES = ("name", "city", "food", "animal", "day", "building", "job", "colour", "room", "vehicle")
TRAIN, TEST = 1000, 300
SEQ = {"name": "seq", "head_learning_rate": 0.01, "warmup_target": "classes"}
PLAIN, STAR = {**SEQ, "preset": "seq_lin"}, {**SEQ, "preset": "w_fixbc_lin", "warmup_epochs": 3}
MEMORY = {"capacity": 100, "memory_batch": 16}
METHODS: dict[str, tuple[str, Any]] = {
    "plain heads": ("words", PLAIN),
    "SEQ*": ("words", STAR),
    "SEQ*, state of the last token": ("words_last", STAR),
    "plain heads, experience replay": ("words", [PLAIN, {"name": "experience_replay", **MEMORY}]),
    "plain heads, DER++": ("words", [PLAIN, {"name": "der", **MEMORY}]),
}


def sentences(count: int, seed: int) -> list[dict[str, list[str]]]:
    """Rows of words and tags, each with an entity at least."""
    from everlearn.data.embedded.grammars import SKELETONS
    from everlearn.data.embedded.words import POOLS

    draw, rows = random.Random(seed), list[dict[str, list[str]]]()
    while len(rows) < count:
        words, tags = [], []
        for piece in draw.choice(SKELETONS).split():
            kind = piece[1:-1] if piece.startswith("{") else ""
            filler = str(draw.choice(list(POOLS[kind]))) if kind in POOLS else piece
            for at, word in enumerate(filler.split()):
                words.append(word)
                tags.append(f"{'I' if at else 'B'}-{kind}" if kind in TYPES else "O")
        if any(tag != "O" for tag in tags):
            rows.append({"tokens": words, "ner_tags": tags})
    return rows


def recipe_of(folder: Path, name: str, seed: int) -> Any:
    """The run of a method."""
    from everlearn.recipe import make_recipe

    template, method = METHODS[name]
    source: dict[str, object] = {"labels": list(TYPES)}
    for part, count in (("train", TRAIN), ("evaluation", TEST)):
        source[part] = str(folder / f"{part}-{seed}.jsonl")
        rows = sentences(count, seed * 2 + (part == "train"))
        Path(str(source[part])).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return make_recipe(
        {
            "name": f"{list(METHODS).index(name)}-{seed}",
            "runs_dir": str(folder / "runs"),
            "seed": seed,
            "model": {"base": "embedded", "tuning": "full", "dtype": "float32", "template": template},
            "stream": {"from": source, "classes_per_task": [4, 2, 2, 2], "scenario": "class_incremental"},
            "method": method,
            "training": {"epochs": 5, "batch_size": 16, "learning_rate": 3e-4},
            "evaluation": {"general": False, "probing": {"probes": ["linear"]}},
        }
    )


def main() -> None:
    """Runs all methods and prints the table."""
    from everlearn.runs.loop import execute

    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="42")
    seeds = [int(one) for one in parser.parse_args().seeds.split(",")]
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in METHODS:
            for seed in seeds:
                done: Any = execute(recipe_of(Path(place), name, seed))
                of_run = {key: done.metrics[key]["value"] for key in ("AR", "average_accuracy", "forgetting_highest")}
                of_run["probe"] = done.probing["probes"]["linear"]["values"][-1][0]
                of_run |= {"low": done.metrics["AR"]["low"], "high": done.metrics["AR"]["high"]}
                found.setdefault(name, []).append({key: round(value, 1) for key, value in of_run.items()})
                print(f"{name}, seed {seed}: {found[name][-1]}", flush=True)
                RESULTS.write_text(json.dumps({"seeds": seeds, "methods": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
