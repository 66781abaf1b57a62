"""Two languages one after the other, by reward and by plain fine-tuning: what is learnt, what of the first is kept.

    python benchmarks/translation.py         # writes benchmarks/results/translation.json, about 25 minutes of one core

The shipped recipe `translation` with the methods that it compares: plain fine-tuning on the answers, R1-T1 with its
KL and without; plain fine-tuning at the rate of the reward, a tenth of the recipe's; and walks in every row of all
tasks, with no reward: as the recipe trains, and from the primer with the rate and the steps of the reward. The
settings were chosen on seed 42, which is none of those measured here. Scores are exact matches in per cent of 80 test
phrases a language (before its stage 40, the primer's); intervals are t intervals of 95 % over the seeds. Reward and
KL are means over a sixth of a stage's steps, first and last. The run folders stay in `runs/translation-study*`; a
study that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from everlearn.data.embedded.translation import LANGUAGES, embedded_translations
from everlearn.data.instance import Instance
from everlearn.environment import machine, versions
from everlearn.evaluation.bootstrap import seeds_interval
from everlearn.files import read_json, read_jsonl, write_json, write_jsonl
from everlearn.progress import make_progress
from everlearn.recipe import MethodConfig, Recipe, load_recipe, make_recipe
from everlearn.runs.compare import compare, parse_methods
from everlearn.runs.loop import execute

RESULTS = Path(__file__).parent / "results" / "translation.json"
GENTLE = {"training.learning_rate": 1e-4}
FEW = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-4, "scheduler": "constant", "warmup_ratio": 0.0}
NOTED = ("reward", "KL to the start", "entropy")


def ends_of(history: Path) -> dict[str, list[float]]:
    """Means over the first and the last sixth of the steps of a phase by reward; nothing of another phase."""
    rows: list[Any] = list(read_jsonl(history))
    part = max(1, len(rows) // 6)
    return {
        name: [round(statistics.mean(row[name] for row in some), 4) for some in (rows[:part], rows[-part:])]
        for name in NOTED
        if name in rows[0]
    }


def with_walks(seed: int, folder: Path) -> list[dict[str, object]]:
    """The recipe's tasks with a walk in every training row, as files."""
    tasks = []
    for task in embedded_translations(seed):
        source: dict[str, object] = {"name": task.name, "metric": task.metric}
        for part, rows in (("train", task.train), ("evaluation", task.evaluation)):
            source[part] = str(folder / f"{task.name}-{part}-{seed}.jsonl")
            write_jsonl(Path(str(source[part])), [replace(row, walk=walk_of(row)).to_json() for row in rows])
        tasks.append(source)
    return tasks


def walk_of(row: Instance) -> str:
    """What the primer's rows think."""
    (language,) = (one for one in LANGUAGES if one.name in row.instruction)
    return f"{language.name} : " + " , ".join(f"{word} {language.words[word]}" for word in row.input.split()[1:])


def before(run: Path, name: str, at: int) -> float:
    """What the model of the stage before gets right of the primer's test phrases in a language."""
    (stage,) = run.glob(f"stages/{at:02d}-*")
    rows: Any = read_jsonl(stage / "predictions" / "primer" / "predictions.jsonl")
    return statistics.mean(row["scores"]["exact_match"] for row in rows if name in row["instruction"])


def scores_of(run: Path) -> dict[str, float]:
    """Of each language what stood before its stage, just after it and at the end; of the first, what was lost."""
    matrix: Any = read_json(run / "matrix.json")
    tasks, rows, found = matrix["tasks"], matrix["values"], dict[str, float]()
    for name in (language.name for language in LANGUAGES):
        at = tasks.index(name)
        if "primer" in tasks:
            found[f"{name} after the primer"], found[f"{name} before"] = before(run, name, 1), before(run, name, at)
        else:  # it is the base
            found[f"{name} after the primer"], found[f"{name} before"] = (
                matrix["base"][at],
                [matrix["base"], *rows][at][at],
            )
        found[f"{name} when learnt"], found[f"{name} at the end"] = rows[at][at], rows[-1][at]
    found["tolu lost"] = found["tolu when learnt"] - found["tolu at the end"]
    found["both at the end"] = statistics.mean(found[f"{name} at the end"] for name in ("tolu", "kesh"))
    return found


def runs_of(recipe: Recipe, methods: Sequence[MethodConfig], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Runs every method with every seed, and says what each has come to."""
    compare(recipe, methods, seeds, progress=make_progress())
    folder = Path(recipe.runs_dir) / recipe.name
    comparison: Any = read_json(folder / "comparison.json")
    runs = []
    for entry in comparison["runs"]:
        run = folder / entry["folder"]
        manifest: Any = read_json(run / "manifest.json")
        phases = {path.parents[1].name: ends_of(path) for path in sorted(run.glob("stages/*/training/history.jsonl"))}
        runs.append(
            {
                "label": entry["label"],
                "seed": entry["seed"],
                "scores": scores_of(run),
                "first_and_last_steps": {stage: ends for stage, ends in phases.items() if ends},
                "seconds": round(sum(step["seconds"] for step in manifest["steps"].values()), 1),
            }
        )
    return runs


def main() -> None:
    """Runs the comparison and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], help="recipe keys, to try it at a smaller size")
    args = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
    fewer = {"evaluation.general": False, "evaluation.unseen_tasks": False}
    recipe = load_recipe("translation", {"name": "translation-study", **fewer, **changes})
    gentle = load_recipe("translation", {"name": "translation-study-gentle", **fewer, **changes, **GENTLE})
    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs = runs_of(recipe, recipe.compare, seeds)
    for run in runs_of(gentle, parse_methods("sequential", gentle), seeds):
        runs.append({**run, "label": f"sequential at {gentle.training.learning_rate:g}"})
    folder = Path(recipe.runs_dir) / "translation-study-walks"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        tasks = with_walks(seed, folder)
        walks = make_recipe({**recipe.model_dump(), "name": f"{folder.name}-{seed}", "stream": {"tasks": tasks}})
        for run in runs_of(walks, parse_methods("r1_t1:epochs=0", walks), [seed]):
            runs.append({**run, "label": "walks for every row, no reward"})
        primer = execute(
            make_recipe(
                {
                    **recipe.model_dump(),
                    "name": f"translation-study-primer-{seed}",
                    "seed": seed,
                    "stream": {**recipe.stream.model_dump(by_alias=True), "order": ["primer"]},
                }
            )
        )
        few = make_recipe(
            {
                **recipe.model_dump(),
                "name": f"translation-study-few-{seed}",
                "stream": {"tasks": tasks[1:]},
                "training": FEW,
                "model": {**recipe.model.model_dump(), "base": str((primer.folder / "model").absolute())},
                "evaluation": {**recipe.evaluation.model_dump(), "unseen_tasks": True},
            }
        )
        for run in runs_of(few, parse_methods("r1_t1:epochs=0", few), [seed]):
            runs.append({**run, "label": "walks for every row from the primer, steps and rate of the reward"})
    summary: dict[str, dict[str, object]] = {}
    for label in dict.fromkeys(run["label"] for run in runs):
        scores = [run["scores"] for run in runs if run["label"] == label]
        summary[label] = {}
        for name in scores[0]:
            values = [one[name] for one in scores]
            summary[label][name] = {"mean": statistics.mean(values), "interval": seeds_interval(values, 0.95)}
    write_json(
        RESULTS,
        {
            "command": " ".join(["python benchmarks/translation.py", *sys.argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "summary": summary,
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
