"""`everlearn evaluate`: scores one model state on the tasks of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.visible import tell


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display, add_recipe

    parser = commands.add_parser("evaluate", help="score a model on the tasks of a recipe, without training")
    about = "a stage's training folder or a run's model folder; nothing: the recipe's base"
    add_recipe(parser, {"--checkpoint": ("evaluate.checkpoint", about)})
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluates and prints one line a task."""
    from everlearn.cli.options import make_display, read_recipe
    from everlearn.runs.evaluation import evaluate_checkpoint, folder_of

    recipe = read_recipe(args)
    folder = folder_of(recipe)
    checkpoint = recipe.evaluate.checkpoint
    scores = evaluate_checkpoint(recipe, Path(checkpoint) if checkpoint else None, folder, make_display(args, folder))
    for name, score in scores["tasks"].items():
        low, high = score["interval"]
        values = "  ".join(f"{metric} {value:.1f}" for metric, value in score["values"].items())
        tell(f"{name}: {score['metric']} {score['values'][score['metric']]:.1f} [{low:.1f}, {high:.1f}]  ({values})")
    if perplexity := scores["general"].get("perplexity"):
        tell(f"general text: perplexity {perplexity['value']:.2f}")
    if microtasks := scores["general"].get("microtasks"):
        tell(f"micro-tasks: {microtasks['value']:.1f} % right")
    for benchmark in scores.get("benchmarks", {}).values():
        first = benchmark["results"][0]
        values = "  ".join(f"{metric['metric']} {_shown(metric)}" for metric in first["metrics"])
        tell(f"{first['name']}: {values}  (lm-evaluation-harness {benchmark['lm_eval']})")
    if (judge := scores.get("judge")) and judge["all"]["win_rate"]:
        plain, controlled = (judge["all"][name]["value"] for name in ("win_rate", "length_controlled"))
        tell(f"judge {judge['judge']}: win rate {plain:.1f} %, controlled for length {controlled:.1f} %")
    tell(f"Scores and predictions: {folder}")
    return 0


def _shown(metric: Mapping[str, Any]) -> str:
    value, error = metric["value"], metric["stderr"]
    return "-" if value is None else f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
