"""Class- and task-incremental learning on real data: heads of SEQ and its variants, replay, and answers in words.

    python benchmarks/incremental_study.py banking77 --data FOLDER                 # the embedded base, three seeds
    python benchmarks/incremental_study.py fewrel16 --data FOLDER --base MODEL     # a folder, GGUF file or hub name

FOLDER holds `NAME.train.jsonl.gz`, `NAME.test.jsonl.gz` (`{"text", "label"}`) and `NAME.labels.json`. The kinds are
comparisons of their own, since each has its rate: `heads` (whose task is unknown), `words` (answers in words, unknown
likewise), `known` (one LoRA a task beside one LoRA for all, where the task of each row is known). All classes are
learnt, of the rows `--rows` a class. Nothing was tuned on these data: rates are those of `everlearn run incremental`
and of benchmarks/study.py. The same command goes on with a study that was interrupted. Writes
benchmarks/results/incremental_<data>_<base>.json; `--table` runs nothing and prints it.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

from everlearn.environment import machine, versions
from everlearn.files import read_json, write_json
from everlearn.progress import make_progress
from everlearn.recipe import Recipe, make_recipe, set_dotted
from everlearn.recipe_file import parse
from everlearn.runs.compare import compare

STREAMS: dict[str, dict[str, Any]] = {
    "banking77": {"classes_per_task": 11, "template": "classification"},
    "clinc150": {"classes_per_task": 10, "template": "classification"},
    "fewrel16": {"classes_per_task": 4, "template": "relation_classification_state"},
}
WARM = ("w_fixbc_lin", "w_fixbc_cos", "p_w_fixbc_lin", "p_w_fixbc_cos", "w_fixbc_proto")


def seq(preset: str) -> dict[str, Any]:
    """A row of the study's tables, with what the recipe `incremental` sets for its few rows."""
    rates = {} if preset.endswith("proto") else {"head_learning_rate": 0.03}
    return {"name": "seq", "preset": preset, **({"warmup_epochs": 5} if preset in WARM else {}), **rates}


REPLAYED = [
    [seq("seq_lin"), {"name": "random_rehearsal", "ratio": 0.1, "draw": "random"}],
    [seq("w_fixbc_lin"), {"name": "random_rehearsal", "ratio": 0.1, "draw": "random"}],
]


def named(method: Any) -> str:
    """A method in short, as `--only` has it: presets of SEQ by their names, stacks with a plus sign."""
    if isinstance(method, list):
        return "+".join(map(named, method))
    return str(method if isinstance(method, str) else method.get("preset", method["name"]))


KINDS: dict[str, dict[str, Any]] = {
    "heads": {
        "scenario": "class_incremental",
        "methods": [*map(seq, ("seq_lin", "seq_cos", "fixb_cos", "fixc_cos", "fixbc_cos", *WARM)), *REPLAYED],
        "recipe": {"model.tuning": "full", "training.learning_rate": 3e-4},
    },
    "words": {
        "scenario": "class_incremental",
        "methods": ["sequential", {"name": "random_rehearsal", "ratio": 0.1, "draw": "random"}, "ssr"],
        "recipe": {"model.tuning": "full", "training.learning_rate": 1e-3},
    },
    "known": {
        "scenario": "task_incremental",
        "methods": ["task_lora", "sequential", "ssr"],
        "recipe": {
            "model.tuning": "lora",
            "model.lora": {"rank": 32, "alpha": 32, "dropout": 0.0, "targets": "all-linear"},
            "training.learning_rate": 2e-3,
        },
    },
}


def recipe_of(args: argparse.Namespace, kind: str, name: str) -> Recipe:
    """The comparison of one kind."""
    stream, folder = STREAMS[args.dataset], args.data.resolve()
    classes = stream["classes_per_task"]
    tree: dict[str, Any] = {
        "name": f"{name}-{kind}",
        "runs_dir": args.runs_dir,
        "model": {"base": args.base, "template": stream["template"], "dtype": "float32"},
        "stream": {
            "from": {
                "train": str(folder / f"{args.dataset}.train.jsonl.gz"),
                "evaluation": str(folder / f"{args.dataset}.test.jsonl.gz"),
                "label_names": str(folder / f"{args.dataset}.labels.json"),
                "columns": {"input": "text", "output": "label"},
            },
            "classes_per_task": classes,
            "scenario": KINDS[kind]["scenario"],
            "train_limit": args.rows * classes,
            "evaluation_limit": args.test_rows * classes,
        },
        "compare": [one for one in KINDS[kind]["methods"] if not args.only or named(one) in args.only.split(",")],
        "seeds": [int(seed) for seed in args.seeds.split(",")],
        "training": {"epochs": args.epochs, "batch_size": 16},
        "evaluation": {"max_new_tokens": 16, "general": False, "unseen_tasks": False},
    }
    for key, value in KINDS[kind]["recipe"].items():
        set_dotted(tree, key, value)
    for item in args.set:
        key, value = item.split("=", 1)
        set_dotted(tree, key, parse(value, f"--set {key}"))
    return make_recipe(tree)


def run_of(folder: Path) -> dict[str, Any]:
    """What of one run the summary over seeds does not say."""
    matrix: Any = read_json(folder / "matrix.json")
    manifest: Any = read_json(folder / "manifest.json")
    return {
        "matrix": matrix["values"],
        "probing": read_json(folder / "probing.json") if (folder / "probing.json").exists() else None,
        "seconds": round(sum(step["seconds"] for step in manifest["steps"].values()), 1),
    }


def table(results: Any) -> str:
    """The best at the end first, by kind; means over seeds with 95 % intervals, seconds of the fastest run."""
    lines = []
    for kind, found in results["kinds"].items():
        title = "| method | at the end | over the stages | forgetting | gap to the probe | s a run |"
        lines += [f"{kind}:", "", title, "| --- " * 6 + "|"]
        for label, figures in sorted(found["summary"].items(), key=lambda item: -item[1]["AR"]["mean"]):
            cells = []
            for name in ("AR", "average_accuracy", "forgetting", "probe_gap"):
                one = figures.get(name) or {"mean": None, "low": None}
                span = "" if one["low"] is None else f" ({one['low']:.1f} to {one['high']:.1f})"
                cells.append("-" if one["mean"] is None else f"{one['mean']:.1f}{span}")
            seconds = min(run["seconds"] for run in found["runs"] if run["label"] == label)
            lines.append(f"| `{label}` | {' | '.join(cells)} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Runs the comparisons and writes their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=STREAMS)
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=20, help="training rows a class")
    parser.add_argument("--test-rows", type=int, default=20, help="test rows a class")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", help="of a kind's methods, such as seq_lin,w_fixbc_cos,seq_lin+random_rehearsal")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--set", action="append", default=[], help="recipe keys")
    parser.add_argument("--table", action="store_true", help="run nothing, print the results that stand")
    args = parser.parse_args()
    kept = [named(one) for kind in args.kinds.split(",") for one in KINDS[kind]["methods"]]
    if unknown := set((args.only or kept[0]).split(",")) - set(kept):
        parser.error(f"--only: these kinds have no {', '.join(sorted(unknown))}, but {', '.join(kept)}")
    base = re.sub(r"[^A-Za-z0-9.]+", "-", Path(args.base).name.removesuffix(".gguf")).strip("-")
    name = f"incremental-{args.dataset}-{base}"
    out = Path(__file__).parent / "results" / f"{name.replace('-', '_', 2)}.json"
    if args.table:
        print(table(read_json(out)))
        return
    if args.data is None:
        parser.error("--data: give the folder with the data sets")
    began, kinds = time.perf_counter(), {}
    for kind in args.kinds.split(","):
        recipe = recipe_of(args, kind, name)
        compare(recipe, recipe.compare, recipe.seeds, progress=make_progress())
        folder = Path(recipe.runs_dir) / recipe.name
        comparison: Any = read_json(folder / "comparison.json")
        runs = [
            {"label": entry["label"], "seed": entry["seed"], **run_of(folder / entry["folder"])}
            for entry in comparison["runs"]
        ]
        kinds[kind] = {"summary": comparison["summary"], "runs": runs}
    write_json(
        out,
        {
            "command": " ".join(["python benchmarks/incremental_study.py", *sys.argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "seconds": round(time.perf_counter() - began, 1),
            "kinds": kinds,
        },
    )
    print(table(read_json(out)))


if __name__ == "__main__":
    main()
