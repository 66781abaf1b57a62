"""Real pretrained models on real streams: what is forgotten, and what rehearsal keeps of it.

    python benchmarks/real_model.py MODEL --data FOLDER             # a model folder, a GGUF file or a name on the hub
    python benchmarks/real_model.py MODEL --data FOLDER --size tiny --stream long

FOLDER holds `superni/` (the five tasks of SSR in one of the published orders 1 to 3: rows as in DeepLearnXMU/SSR) and
`long_sequence/` (the text classification of O-LoRA: rows as in cmnfriend/O-LoRA), as JSON Lines, gzipped or not.

Sizes: `tiny` shows in minutes that every step works; `small` takes about half an hour on two cores with 135 million
weights; `published` has all rows and the settings of SSR's paper and belongs on a GPU, for hours. What the smaller
ones change is in `SIZES`, stands in the result and is said first: a base ends few texts by itself, so `faithful`
writes up to 1,140 texts of 2,048 tokens a task unless `max_prompts` and `max_new_tokens` bound it. It is one
comparison: the same command goes on with it. Writes benchmarks/results/real_<name>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from everlearn.checking import checked
from everlearn.environment import machine, versions
from everlearn.errors import UserError
from everlearn.files import read_json, read_jsonl, write_json, write_text
from everlearn.progress import make_progress
from everlearn.recipe import MethodConfig, make_recipe, set_dotted
from everlearn.recipe_file import parse
from everlearn.report.facts.synthetic import read_synthesis
from everlearn.runs.compare import compare, parse_methods
from everlearn.synthesis.similarity import first_of_each_kind

SUPERNI = {
    "1": ("qa", "qg", "sa", "sum", "trans"),
    "2": ("trans", "sa", "qa", "sum", "qg"),
    "3": ("sum", "qg", "trans", "qa", "sa"),
}
_SAME = "Say whether both have the same meaning."
_FOLLOWS = "Say how the second sentence stands to the first."
_FEELING = "Say how the writer of this review feels."
LONG = {
    "mnli": _FOLLOWS,
    "cb": _FOLLOWS,
    "wic": "Say whether the word has the same sense in both sentences.",
    "copa": "Say which of the two it is.",
    "qqp": _SAME,
    "boolqa": "Say whether the passage answers the question with yes.",
    "rte": _FOLLOWS,
    "imdb": _FEELING,
    "yelp": _FEELING,
    "amazon": _FEELING,
    "sst2": _FEELING,
    "agnews": "Say what this piece of news is about.",
    "multirc": "Say whether the answer to the question is right by the passage.",
}
"""O-LoRA's order 4 without the two sets that have no training rows at hand; the instructions are worded here."""
_LEARNT = {"training.epochs": 1, "training.batch_size": 4, "training.learning_rate": 1e-3}
"""Of few rows: at the published rate a handful of steps teach nothing."""
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "tasks": 2,
        "recipe": {
            **_LEARNT,
            "stream.train_limit": 8,
            "stream.evaluation_limit": 4,
            "evaluation.max_new_tokens": 24,
            "evaluation.unseen_tasks": False,
            "evaluation.general": False,
        },
        "ssr": {"ratio": 0.25},
        "faithful": {"max_prompts": 4, "max_new_tokens": 96, "refinement_tokens": 32, "clusters": 1, "minimum": 0},
        "gere": {"count": 4, "max_tokens": 32},
    },
    "small": {
        "tasks": 3,
        "recipe": {
            **_LEARNT,
            "stream.train_limit": 60,
            "stream.evaluation_limit": 16,
            "evaluation.max_new_tokens": 32,
        },
        "ssr": {},
        "faithful": {"max_prompts": 12, "max_new_tokens": 128, "refinement_tokens": 48, "clusters": 1, "minimum": 0},
        "gere": {"count": 16, "max_tokens": 128},
    },
    "published": {"tasks": None, "recipe": {}, "ssr": {}, "faithful": {}, "gere": {}},
}
MOST_SHOWN = 50
"""Rehearsed rows of a task that stand in the result."""
ALIKE = 0.7
"""Inputs more alike than this (character 4-grams, Jaccard) are counted as copies of a demonstration."""


def tasks_of(stream: str, data: Path) -> list[dict[str, Any]]:
    """The entries of a recipe's stream."""
    if stream != "long":
        folder = data / "superni"
        return [
            {"name": name, "train": found(folder, f"{name}.train"), "evaluation": found(folder, f"{name}.eval")}
            for name in SUPERNI[stream]
        ]
    folder = data / "long_sequence"
    labels: Any = read_json(folder / "labels.json")
    return [
        {
            "name": name,
            "train": found(folder, f"{name}.train"),
            "evaluation": found(folder, f"{name}.test", needed=False),
            "instruction": f"{instruction} Answer with one of: {', '.join(labels[name])}.",
            "columns": {"input": "sentence", "output": "label"},
            "labels": labels[name],
        }
        for name, instruction in LONG.items()
    ]


def found(folder: Path, name: str, *, needed: bool = True) -> str | None:
    """The file with these rows; None where they are held out of the training rows."""
    for ending in (".jsonl.gz", ".jsonl", ".json"):
        if (folder / f"{name}{ending}").is_file():
            return str((folder / f"{name}{ending}").resolve())
    if needed:
        sys.exit(f"{folder} has no {name}.jsonl.gz: give the folder that holds superni/ and long_sequence/ by --data.")
    return None


def methods_of(size: dict[str, Any]) -> list[Any]:
    """Nothing, real rows, synthetic rows, those with general texts beside them; last what a model may fail at."""
    improved = {"name": "ssr", "preset": "improved", **size["ssr"]}
    return [
        "sequential",
        {"name": "random_rehearsal", "ratio": 0.01},
        {"name": "random_rehearsal", "ratio": 0.1},
        improved,
        [improved, {"name": "gere", "weight": "dynamic", **size["gere"]}],
        {"name": "ssr", "preset": "faithful", **size["ssr"], **size["faithful"]},
    ]


def rehearsal_of(folder: Path) -> dict[str, Any] | None:
    """What became of the texts that were written for one task."""
    account = read_synthesis(folder)
    if account is None:
        return None
    raw = Counter(str(row["finish_reason"]) for row in read_jsonl(folder / "raw" / "raw.jsonl"))
    place = folder / "refined" / "refined.jsonl"
    rows = list(read_jsonl(place)) if place.is_file() else []
    demonstrations = [str(row["input"]) for row in account.demonstrations]
    repeats = first_of_each_kind([str(row["input"]) for row in rows], demonstrations, ALIKE)
    return {
        "asked": account.asked,
        "left_at_each_step": {level.title: level.count for level in account.levels},
        "dropped_at_each_step": {level.title: dict(level.dropped) for level in account.levels if level.dropped},
        "texts_that_ended_by": dict(raw),
        "rehearsed": len(rows),
        "copies_of_demonstrations": sum(at is not None and at < 0 for at in repeats),
        "repeat_each_other": sum(at is not None and at >= 0 for at in repeats),
        "answers_without_end": sum(row["finish_reason"] == "length" for row in rows),
        "rows": [{"input": row["input"], "answer": row["targets"]} for row in rows[:MOST_SHOWN]],
    }


def run_of(folder: Path) -> dict[str, Any]:
    """The figures of one run."""
    matrix: Any = read_json(folder / "matrix.json")
    metrics: Any = read_json(folder / "metrics.json")
    manifest: Any = read_json(folder / "manifest.json")
    last = sorted(folder.glob("stages/*/scores.json"))
    general = [scores["general"] for scores in map(read_scores, last) if scores.get("general")]
    steps = manifest["steps"].values()
    answers = [row for file in last[-1].parent.glob("predictions/*/predictions.jsonl") for row in read_jsonl(file)]
    return {
        "tasks": matrix["tasks"],
        "base": matrix["base"],
        "matrix": matrix["values"],
        "empty_answers": matrix["empty"],
        "metrics": {name: metrics[name] for name in ("AR", "BWT", "FWT", "FWT_over_base")},
        "perplexity": [one["perplexity"]["value"] for one in general],
        "final_answers_without_end": sum(row["finish_reason"] == "length" for row in answers),
        "final_answers": len(answers),
        "seconds": round(sum(step["seconds"] for step in steps), 1),
        "generated_tokens": sum(step["generated_tokens"] for step in steps),
        "peak_memory_gib": round(max(step["peak_memory_bytes"] for step in steps) / 2**30, 2),
        "rehearsal": {
            place.parent.name: account
            for place in sorted(folder.glob("stages/*/synthesis"))
            if (account := rehearsal_of(place)) is not None
        },
    }


def read_scores(path: Path) -> dict[str, Any]:
    scores: Any = read_json(path)
    return dict(scores)


def cell(metric: dict[str, Any] | None) -> str:
    if metric is None or metric.get("value") is None:
        return "-"
    low, high = metric.get("low"), metric.get("high")
    return f"{metric['value']:.1f}" + (f" [{low:.1f}, {high:.1f}]" if low is not None else "")


def table(result: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        f"# {result['name']}",
        f"`{result['command']}`. Means over {result['evaluation_rows']} evaluation rows a task at most, seed "
        f"{result['seed']}; in brackets 95 % intervals over rows, which know nothing of seeds.",
        "| method | AR | BWT | FWT | empty answers at the end | without end | perplexity (base, after) "
        "| tokens written | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, run in result["runs"].items():
        metrics, seen = run["metrics"], run["perplexity"]
        empty = sum(count or 0 for count in run["empty_answers"][-1])
        lines.append(
            f"| {label} | {cell(metrics['AR'])} | {cell(metrics['BWT'])} | {cell(metrics['FWT'])} "
            f"| {empty} of {run['final_answers']} | {run['final_answers_without_end']} "
            f"| {f'{seen[0]:.1f}, {seen[-1]:.1f}' if seen else '-'} | {run['generated_tokens']:,} "
            f"| {run['seconds']:,.0f} |"
        )
    lines += [
        "## Synthetic rows",
        "| method | stage | asked | rehearsed | copies of demonstrations | repeat each other | answers without end "
        "| texts ended by | dropped |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, run in result["runs"].items():
        for stage, one in run["rehearsal"].items():
            dropped: Counter[str] = Counter()
            for reasons in one["dropped_at_each_step"].values():
                dropped.update(reasons)
            lines.append(
                f"| {label} | {stage} | {one['asked']} | {one['rehearsed']} | {one['copies_of_demonstrations']} "
                f"| {one['repeat_each_other']} | {one['answers_without_end']} | {listed(one['texts_that_ended_by'])} "
                f"| {listed(dropped) or '-'} |"
            )
    if result["refused"]:
        lines.append(f"Not all methods were run: {result['refused']}")
    bounds = [f"- {key}: `{json.dumps(value)}`" for key, value in result["changed"].items() if value]
    return (
        "\n\n".join("\n".join(part) for part in sections(lines))
        + "\n\n"
        + "\n".join(["Changed against the published settings:" if bounds else "Published settings.", "", *bounds])
        + "\n"
    )


def sections(lines: list[str]) -> list[list[str]]:
    """Rows of a table together, everything else by itself."""
    parts: list[list[str]] = []
    for line in lines:
        if line.startswith("|") and parts and parts[-1][-1].startswith("|"):
            parts[-1].append(line)
        else:
            parts.append([line])
    return parts


def listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in Counter(counts).most_common() if count)


def main() -> None:
    """Runs the comparison and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="model folder, GGUF file or name on the Hugging Face hub")
    parser.add_argument("--data", type=Path, required=True, help="folder with superni/ and long_sequence/")
    parser.add_argument("--stream", choices=[*SUPERNI, "long"], default="1", help="published order, or the long one")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--methods", help="others than these, as for everlearn compare")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--name", help="of comparison and result; nothing: model, stream and size")
    parser.add_argument("--set", action="append", default=[], help="recipe keys, such as training.epochs=2")
    args = parser.parse_args()
    size = SIZES[args.size]
    model = re.sub(r"[^A-Za-z0-9.]+", "-", Path(args.model).name.removesuffix(".gguf")).strip("-")
    name = args.name or f"{model}-{args.stream}-{args.size}"
    tree: dict[str, Any] = {
        "name": f"real-{name}",
        "seed": args.seed,
        "runs_dir": args.runs_dir,
        "model": {"base": str(Path(args.model).resolve()) if Path(args.model).exists() else args.model},
        "stream": {"tasks": tasks_of(args.stream, args.data)[: size["tasks"]], "bad_rows": "tolerant"},
    }
    changes = {**size["recipe"], **dict(item.split("=", 1) for item in args.set)}
    changed = {"tasks": size["tasks"], "recipe": changes, **{key: size[key] for key in ("ssr", "faithful", "gere")}}
    folder, refused, began = Path(args.runs_dir) / f"real-{name}", None, time.perf_counter()
    try:
        for key, value in changes.items():
            set_dotted(tree, key, parse(value, f"--set {key}") if isinstance(value, str) else value)
        recipe = make_recipe(tree)
        methods = [checked(MethodConfig, method, where="methods") for method in methods_of(size)]
        if args.methods:
            methods = parse_methods(args.methods, recipe)
        for key, value in changed.items():
            if value:
                print(f"changed against the published settings: {key}: {json.dumps(value)}", flush=True)
        compare(recipe, methods, progress=make_progress())
    except UserError as error:
        refused = str(error)
        print(f"error: {refused}", file=sys.stderr)
        if not (folder / "comparison.json").exists():
            sys.exit(2)
    comparison: Any = read_json(folder / "comparison.json")
    first: Any = read_json(folder / comparison["runs"][0]["folder"] / "manifest.json")
    result = {
        "name": name,
        "command": " ".join(["python benchmarks/real_model.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - began, 1),
        "base": first["notes"],
        "template": first["template"],
        "data": first["tasks"],
        "seed": args.seed,
        "evaluation_rows": max(task["evaluation_rows"] for task in first["tasks"]),
        "changed": changed,
        "refused": refused,
        "runs": {entry["label"]: run_of(folder / entry["folder"]) for entry in comparison["runs"]},
    }
    place = Path(__file__).parent / "results" / f"real_{name}"
    write_json(place.with_name(f"{place.name}.json"), result)
    write_text(place.with_name(f"{place.name}.md"), table(result))
    print(table(result))
    sys.exit(2 if refused else 0)


if __name__ == "__main__":
    main()
