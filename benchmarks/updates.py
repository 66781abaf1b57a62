"""The three paradigms of version updates on the embedded drifting corpus: three seeds, quality and executed cost.

    python benchmarks/updates.py             # about 12 minutes on one core
    python benchmarks/updates.py --seeds 0 --set versions.steps=40 --out smaller.json     # to try it

The same as `everlearn update embedded --compare --seeds 0,1,2`, in the run folder `runs/study-updates`, of which the
figures go to benchmarks/results/updates.json: means with intervals over seeds, differences taken pairwise, executed
steps, and whether path switching came within the margin of pre-training from scratch. The recipe was settled on seed
7 alone (docs/updates.md says how). `--recipe embedded:branch_fraction` runs a sweep in the same way.

    python benchmarks/updates.py --figure docs/updates.svg     # draws the results file, trains nothing

draws the planned rates of the three paradigms and quality against cost, and prints the table of docs/updates.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import yaml

from everlearn.environment import machine, versions
from everlearn.files import read_json, write_json, write_text
from everlearn.progress import make_progress
from everlearn.report.page.figure_file import figure_file
from everlearn.report.versions.figures import quality_against_cost, rates_figure
from everlearn.report.versions.html import NAMES, verdict, write_report
from everlearn.report.versions.last_release import last_releases
from everlearn.updates.compare import compare
from everlearn.updates.config import EmbeddedVersions, UpdateRecipe, load_update_recipe
from everlearn.updates.plan import PARADIGMS

RESULTS = Path(__file__).parent / "results" / "updates.json"


def main() -> None:
    """Runs the comparison and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--name", default="study-updates")
    parser.add_argument("--set", action="append", default=[], help="recipe keys, to try it at a smaller size")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the results file")
    parser.add_argument("--figure", type=Path, help="draw the results file as SVG instead of training")
    args = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
    recipe = load_update_recipe(args.recipe, {"name": args.name, "seeds": args.seeds, **changes})
    found: Any
    if args.figure:
        found = read_json(args.out)
        write_text(args.figure, draw(recipe, found))
        print(table(found))
        return
    began = time.perf_counter()
    found = compare(recipe, make_progress())
    folder = Path(recipe.runs_dir) / recipe.name
    write_report(folder)
    write_json(
        args.out,
        {
            "command": f"everlearn update {args.recipe} --compare --seeds {args.seeds}",
            "machine": machine(),
            "versions": versions(),
            "seconds": round(time.perf_counter() - began, 1),
            "verdict": verdict(found),
            **{key: found[key] for key in ("seeds", "confidence", "margin_percent", "arms")},
            "matrices": [
                {"label": run["label"], "seed": run["seed"], "perplexity": _perplexity(folder / run["folder"])}
                for run in found["runs"]
            ],
        },
    )
    print(verdict(found))


def draw(recipe: UpdateRecipe, found: Any) -> str:
    """The rates as planned, as in the paper's figure 1, and quality against cost as measured."""
    assert isinstance(recipe.versions, EmbeddedVersions), "the figure is of the generated corpus"
    steps = (recipe.versions.steps or 0,) * recipe.versions.count
    panels = []
    for paradigm in PARADIGMS:
        segments = recipe.version_plan(steps).with_paradigm(paradigm).segments()
        peak = recipe.schedule.maximal_rate
        rates = {s.id: [peak * s.schedule(step) for step in range(s.steps)] for s in segments}
        rows = [{**s.to_json(), "version": f"v{s.releases}" if s.releases else None} for s in segments]
        heading = f"{NAMES[paradigm]}: learning rate"
        panels.append((heading, rates_figure(heading, rows, rates)))
    heading = "Perplexity over all versions so far"
    panels.append((heading, quality_against_cost(found["arms"], "seen", heading)))
    return figure_file("Learning rates of three update paradigms, and their quality against cost", panels)


def table(found: Any) -> str:
    """The last releases in Markdown: perplexities with intervals over seeds, differences, executed cost."""
    lines = [
        "| | perplexity over all versions | v1 | v2 | v3 | v4 (own) | against `ptfs` | steps | of `ptfs` |",
        "| --- " * 9 + "|",
    ]
    for last in last_releases(found["arms"]):
        rows = [entry["perplexity"][-1] for entry in found["matrices"] if entry["label"] == last.label]
        cells = [
            f"`{last.label}`",
            last.seen.text(".3f"),
            *(f"{sum(column) / len(column):.2f}" for column in zip(*rows, strict=True)),
            last.difference.text("+.1f", " %") if last.difference else "",
            f"{last.steps:,}",
            f"{100 * last.ratio_to_ptfs:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _perplexity(run: Path) -> Any:
    """Releases by held-out versions."""
    quality: Any = read_json(run / "quality.json")
    return [[round(value, 4) for value in row] for row in quality["perplexity"]]


if __name__ == "__main__":
    main()
