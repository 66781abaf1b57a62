"""What a step costs under each method that acts while a stage trains, against the same step without it.

    python benchmarks/methods.py             # writes benchmarks/results/methods.json
    python benchmarks/methods.py --methods ewc,lwf --tunings lora --rounds 2 --steps 4 --out some.json    # to try it

Every registered method with influences walks two tasks of the embedded stream once (runs share what they can); what
its second stage was trained with is then trained again and again, in turns with the same order without influences:
same start, same rows, same batches, one process, one thread. A method with rehearsed rows of its own in each step is
set against those rows without it, so that their own passes do not count; any other against plain training. Shown is
the median over rounds of the ratio of all steps but the first to the same steps without: a method may look at the rows
of several steps at once, so a step alone says nothing. Only a quiet machine gives ratios worth keeping. An influence
that does nothing tells how far the figures can be trusted.

O-LoRA's goal is out of reach with PEFT's forward pass: nine tenths of what a step costs more stay when the penalty is
left out (`lambda_1: 0`), which are the frozen adapter's own products and calls beside those of the new one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from everlearn.training.influence import Influence

RESULTS = Path(__file__).parent / "results" / "methods.json"
BATCH = 16
GOALS = {
    "lora": {"nothing": 1.01, "ewc": 1.10, "l2": 1.10, "olora": 1.10, "lcia": 1.10, "lwf": 1.35, "kl_anchor": 1.35}
}
"""Largest ratios that were asked for."""
OPTIONS: dict[str, dict[str, object]] = {}
"""Of methods whose defaults do not fit rows as few as these."""


class Nothing(Influence):
    """Does nothing."""


@dataclass(frozen=True)
class Captured:
    """What a stage was trained with.

    Attributes:
        order: Of `everlearn.runs.work.train`.
        influences: As they are before a training, for which a copy is made.
        has_groups: Whether rows are rehearsed in each step.
    """

    order: Any
    influences: list[Influence]
    has_groups: bool


def capture(name: str, tuning: str, steps: int, folder: Path) -> Captured:
    """Runs a method over two tasks and keeps what the last training of its last stage was given.

    Raises:
        UserError: the method cannot do it.
    """
    from everlearn.recipe import load_recipe
    from everlearn.runs import work
    from everlearn.runs.loop import execute

    orders: list[Any] = []
    real = work.train

    def noted(order: Any, progress: Any) -> Any:
        apart = [group for group in order.stage["mixture"].groups if not group.is_shuffled]
        orders.append(Captured(order, deepcopy(list(order.stage["influences"])), bool(apart)))
        return real(order, progress)

    overrides: dict[str, Any] = {
        "name": f"{name}-{tuning}",
        "runs_dir": str(folder / "runs"),
        "model.tuning": tuning,
        "model.device": "cpu",
        "stream.order": ["sentiment", "routing"],
        "stream.train_limit": steps * BATCH,
        "stream.evaluation_limit": 2,
        "training.epochs": 1,
        "training.batch_size": BATCH,
        "evaluation.max_new_tokens": 2,
        "evaluation.general": False,
        "evaluation.unseen_tasks": False,
        "method": {"name": name, **OPTIONS.get(name, {})},
    }
    recipe = load_recipe("embedded", {key: value for key, value in overrides.items() if key != "method"})
    recipe = type(recipe).model_validate({**recipe.model_dump(), "method": overrides["method"]})
    work.train = noted
    try:
        execute(recipe)
    finally:
        work.train = real
    return next((one for one in reversed(orders) if one.influences), orders[-1])


def step_seconds(captured: Captured, influences: list[Influence]) -> list[float]:
    """Seconds of each step but the first, whose time has the start in it."""
    from everlearn.progress import LineProgress
    from everlearn.runs import work

    with tempfile.TemporaryDirectory() as folder:
        order = captured.order
        order = replace(order, folder=Path(folder), stage={**order.stage, "influences": deepcopy(influences)})
        work.train(order, LineProgress())
        lines = (Path(folder) / "history.jsonl").read_text().splitlines()
    at = [json.loads(line)["seconds"] for line in lines]
    return [after - before for before, after in pairwise(at)]


def measure(tuning: str, names: list[str], rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """The ratio of each method."""
    from everlearn.errors import UserError

    plain = capture("sequential", tuning, steps, folder)
    found: dict[str, Any] = {}
    ways = {"nothing": (replace(plain, influences=[Nothing()]), plain)}
    for name in names:
        try:
            captured = capture(name, tuning, steps, folder)
        except UserError as refusal:
            found[name] = {"left_out": str(refusal)}
            continue
        if not captured.influences:
            found[name] = {"left_out": "nothing of it acts while a stage trains"}
            continue
        ways[name] = (captured, captured if captured.has_groups else plain)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, (captured, base) in ways.items():
            runs = [(captured, captured.influences), (base, [])]
            first, second = (step_seconds(*one) for one in (runs if turn % 2 else reversed(runs)))
            acting, without = (first, second) if turn % 2 else (second, first)
            ratios[name].append(sum(acting) / sum(without))
            seconds[name] += acting
    goals = GOALS.get(tuning, {})
    for name, (captured, base) in ways.items():
        values = sorted(ratios[name])
        found[name] = {
            "ratio": round(median(values), 3),
            "quartiles": [round(values[len(values) * part // 4], 3) for part in (1, 3)],
            "against": "its rows alone" if base is captured else "plain training",
            "seconds_per_step": round(mean(seconds[name]), 4),
            **({"goal": goals[name]} if name in goals else {}),
        }
        print(f"{tuning}, {name}: {found[name]}", flush=True)
    return found


def main() -> None:
    """Measures all methods and writes the result."""
    from everlearn.methods.registry import method_class, method_names

    acting = [name for name in method_names() if "influences" in vars(method_class(name))]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(acting))
    parser.add_argument("--tunings", default="lora,full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=34)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    import torch

    from everlearn.environment import machine, versions
    from everlearn.files import write_json

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            tuning: measure(tuning, args.methods.split(","), args.rounds, args.steps, Path(folder))
            for tuning in args.tunings.split(",")
        }
    write_json(args.out, {"machine": machine(), "versions": versions(), "batch": BATCH, "tunings": found})


if __name__ == "__main__":
    main()
