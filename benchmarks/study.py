"""The methods side by side on the embedded base: three seeds, full tuning and LoRA, and what keeps general ability.

    python benchmarks/study.py methods       # one of those below; writes benchmarks/results/study_<name>.json

`methods` sets all methods side by side that full tuning bears, `parts` those that need LoRA beside what they are to be
compared with (`prompts`: soft prompts, at a rate of their own; `apart`: one adapter a task); `strengths` varies what
holds the weights; `reversed` and `turned` walk the stream in two other orders with the methods that matter most
(`methods` has the order as it stands). `full` and `lora` are smaller choices. Every seed draws its own rows, order of
rows and samples. The run folders stay in `runs/study-<name>`, so that `everlearn report runs/study-full` shows
everything behind the figures; a study that was interrupted goes on. With `--table` nothing runs, and the results are
printed as docs/methods.md shows them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from everlearn.environment import machine, versions
from everlearn.files import read_json, read_jsonl, write_json
from everlearn.progress import make_progress
from everlearn.recipe import load_recipe
from everlearn.runs.compare import compare, parse_methods

MATTER_MOST = "sequential,random_rehearsal:ratio=0.1,ssr,sers,gere:weight=dynamic,lcia,ssr+gere:gere.weight=dynamic"
METHODS = {
    "full": "sequential,ssr:preset=improved,random_rehearsal:ratio=0.1,ssr:preset=faithful,"
    "kmeans_rehearsal:ratio=0.1,multitask,l2,ewc",
    "lora": "sequential,ssr:preset=improved,random_rehearsal:ratio=0.1",
    "methods": "sequential,ssr,ssr+gere:gere.weight=dynamic,sers,lamol:gamma=0.4,gere:imitation=none,"
    "gere:weight=dynamic,random_rehearsal:ratio=0.1,kmeans_rehearsal:ratio=0.1,experience_replay,der,agem,gem,"
    "l2,ewc,ewc:memory=online,si,mas,lwf,kl_anchor,lcia,lcia:groups=false,osf,merging,lr_path_switching,"
    "self_distillation,single_task,multitask",
    "parts": "sequential,ssr,experience_replay:capacity=500,olora,ilora,moelora,lcia",
    "prompts": "progressive_prompts",
    "apart": "task_lora",
    "strengths": "l2:strength=0.01,l2:strength=1,ewc:strength=100,ewc:strength=10000,si:strength=10,si:strength=1000,"
    "mas:strength=0.001,mas:strength=0.01,lwf:alpha=0.1,lwf:alpha=0.3,kl_anchor:strength=1,kl_anchor:strength=10,"
    "osf:preserved=0.9",
    "reversed": MATTER_MOST,
    "turned": MATTER_MOST,
}
ORDERS = {
    "reversed": ["booking", "delivery", "routing", "ruvian", "sentiment"],
    "turned": ["routing", "delivery", "booking", "sentiment", "ruvian"],
}
# The adapter's settings were looked for by hand, on single tasks and the stream of seed 0, and confirmed on the stream
# of seed 7: plain sequential tuning learns every task (99 or 100 % each just after its stage). Dropped before, each
# for a task not learnt: rank 16, alpha 32 at rate 5e-3, batch 16 (1.5e-3 and 3e-3 on single tasks); rank 32, alpha 32
# at 4e-3, batch 8.
LORA: dict[str, object] = {
    "model.tuning": "lora",
    "model.lora": {"rank": 32, "alpha": 32, "dropout": 0.0, "targets": "all-linear"},
    "training.learning_rate": 2e-3,
    "training.batch_size": 8,
    "training.epochs": 16,
}
TUNING = {"lora": LORA, "parts": LORA, "apart": LORA, "prompts": {**LORA, "training.learning_rate": 0.3}}


def general_ability(stage: Path) -> float:
    """Share of the micro-tasks that a stage's model answers, in per cent."""
    scores: Any = read_json(stage / "scores.json")
    return float(scores["general"]["microtasks"]["value"])


def seconds_of(run: Path) -> dict[str, float]:
    """What a run's steps took (`alone`), and what of it no other run had made before (`here`)."""
    manifest: Any = read_json(run / "manifest.json")
    steps = manifest["steps"].values()
    return {
        "alone": round(sum(step["seconds"] for step in steps), 1),
        "here": round(sum(step["seconds"] for step in steps if not step["reused"]), 1),
    }


def unheld(run: Path) -> dict[str, dict[str, int]]:
    """Of a run that rehearses synthetic rows: final answers by whether a gold word is in no row that was rehearsed."""
    found = {}
    for file in sorted(run.glob("stages/*/synthesis/refined/refined.jsonl")):
        task = file.parents[2].name.split("-", 1)[1]
        held = {word for row in read_jsonl(file) for word in f"{row['input']} {row['targets']}".split()}
        last = max(run.glob(f"stages/*/predictions/{task}/predictions.jsonl"))
        counts = {"right": 0, "right_unheld": 0, "wrong": 0, "wrong_unheld": 0}
        answers: Any = read_jsonl(last)
        for row in answers:
            kind = "right" if row["scores"]["exact_match"] else "wrong"
            counts[kind] += 1
            counts[f"{kind}_unheld"] += any(word not in held for word in row["gold"].split())
        found[task] = counts
    return found


def table(results: Any) -> str:
    """The best average first: means over seeds and 95 % intervals, general ability by seed, seconds of the fastest."""
    lines = ["| method | AR | BWT | average over the stages | general ability | s a run |", "| --- " * 6 + "|"]
    summary = results["summary"]
    for label in sorted(summary, key=lambda label: -summary[label]["AR"]["mean"]):
        runs = [run for run in results["runs"] if run["label"] == label]
        spans = []
        for name in ("AR", "BWT", "average_accuracy"):
            found = summary[label].get(name) or {"mean": None, "low": None}
            span = "" if found["low"] is None else f" ({found['low']:.1f} to {found['high']:.1f})"
            spans.append("" if found["mean"] is None else f"{found['mean']:.1f}{span}")
        ability = ", ".join(f"{run['general_ability'][-1]:.1f}" for run in runs)
        seconds = min(run["seconds"]["alone"] for run in runs)
        lines.append(f"| `{label}` | {' | '.join(spans)} | {ability} | {seconds:.0f} |")
    alone, here = (sum(run["seconds"][key] for run in results["runs"]) for key in ("alone", "here"))
    return "\n".join([*lines, "", f"All runs alone: {alone:,.0f} s of steps; side by side: {here:,.0f} s."])


def main() -> None:
    """Runs the comparison and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=METHODS)
    parser.add_argument("--methods", help="others than the study's")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], help="recipe keys, to try it at a smaller size")
    parser.add_argument("--table", action="store_true", help="run nothing, print the results that stand")
    args = parser.parse_args()
    out = Path(__file__).parent / "results" / f"study_{args.study}.json"
    if args.table:
        print(table(read_json(out)))
        return
    changes = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
    overrides = {**TUNING.get(args.study, {}), **changes}
    if args.study in ORDERS:
        overrides["stream.order"] = ORDERS[args.study]
    recipe = load_recipe("embedded", {"name": f"study-{args.study}", **overrides})
    methods = parse_methods(args.methods or METHODS[args.study], recipe)
    began = time.perf_counter()
    compare(recipe, methods, [int(seed) for seed in args.seeds.split(",")], progress=make_progress())
    folder = Path(recipe.runs_dir) / recipe.name
    comparison: Any = read_json(folder / "comparison.json")
    runs = [
        {
            "label": entry["label"],
            "seed": entry["seed"],
            "matrix": read_json(folder / entry["folder"] / "matrix.json")["values"],  # type: ignore[index]
            "seconds": seconds_of(folder / entry["folder"]),
            "general_ability": [general_ability(path) for path in sorted((folder / entry["folder"]).glob("stages/*"))],
            "words_not_rehearsed": unheld(folder / entry["folder"]),
        }
        for entry in comparison["runs"]
    ]
    write_json(
        out,
        {
            "command": " ".join(["python benchmarks/study.py", *sys.argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "seconds": round(time.perf_counter() - began, 1),
            "summary": comparison["summary"],
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
