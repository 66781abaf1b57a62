"""Several arms (by default the three paradigms) over the same versions, each with several seeds.

Arms share tokenizer and token files through the cache, and the held-out blocks are the same, so that differences in
perplexity are taken pairwise. Each run is a run folder of its own below the comparison's; a finished one is not run
again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everlearn import recipe_file
from everlearn.evaluation.bootstrap import seeds_interval
from everlearn.files import read_vouched, write_text, write_vouched
from everlearn.recipe_paths import kept_path, portable
from everlearn.run_folder import UPDATE, UPDATE_COMPARISON, refuse_other, unmade_if_refused
from everlearn.seeds import derive
from everlearn.updates.executor import execute
from everlearn.updates.prepare import cache_of
from everlearn.updates.quality import difference

if TYPE_CHECKING:
    from everlearn.progress import Progress
    from everlearn.updates.config import Arm, UpdateRecipe

MARGIN_PERCENT = 1.0
"""A perplexity at most so much higher than the reference's counts as having reached it (chosen here)."""


def compare(recipe: UpdateRecipe, progress: Progress) -> dict[str, Any]:
    """Runs every arm with every seed and sums up.

    Args:
        recipe: With its arms, and `seeds` or one seed.
        progress: Where to show it.

    Returns:
        What `comparison.json` holds.

    Raises:
        UserError: as `execute`; finished runs are kept.
    """
    folder = Path(recipe.runs_dir) / recipe.name
    chosen = recipe.seeds or [recipe.seed]
    refuse_other(folder, UPDATE_COMPARISON)
    runs = []
    with unmade_if_refused(folder):
        _begin(recipe, folder, chosen)
        for arm in recipe.arms():
            for seed in chosen:
                name = f"{arm.label}-s{seed}"
                places = {"name": name, "runs_dir": str(folder), "cache_dir": os.path.abspath(cache_of(recipe))}
                progress.say(f"{recipe.name}: {arm.label}, seed {seed}")
                execute(recipe.with_arm(arm, seed).model_copy(update=places), folder=folder / name, progress=progress)
                runs.append({"label": arm.label, "seed": seed, "folder": name})
    summary = summarise(recipe, folder, runs)
    write_vouched(folder / "comparison.json", summary)
    return summary


def _begin(recipe: UpdateRecipe, folder: Path, seeds: Sequence[int]) -> None:
    """Writes what the comparison will be, so that it can be gone on with from its folder."""
    for arm in recipe.arms():
        recipe.with_arm(arm, seeds[0])  # refuses a wrong arm before any is run
    tree = portable(recipe, folder).model_dump(mode="json", exclude={"seeds", "runs_dir", "cache_dir"})
    write_text(folder / "recipe.yaml", recipe_file.dump(tree))
    begun = {"kind": UPDATE, "name": recipe.name, "seeds": list(seeds), **_places(recipe, folder)}
    write_vouched(folder / "comparison.json", {**begun, "status": "running"})


def _places(recipe: UpdateRecipe, folder: Path) -> dict[str, str]:
    """Where the comparison stands, and its cache."""
    cache = kept_path(os.path.abspath(cache_of(recipe)), folder)
    return {"cache_dir": cache, "folder": str(folder.absolute())}


def summarise(recipe: UpdateRecipe, folder: Path, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means, intervals over seeds, costs and pairwise differences of finished runs."""
    arms = recipe.arms()
    found = {(run["label"], run["seed"]): _read(folder / run["folder"]) for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    arm_rows = []
    for arm in arms:
        of_arm = [found[arm.label, seed] for seed in seeds]
        arm_rows.append(_arm_row(recipe, arm, of_arm) | _differences(recipe, arm, arms, found, seeds))
    return {
        "kind": UPDATE,
        "name": recipe.name,
        "status": "complete",
        **_places(recipe, folder),
        "seeds": seeds,
        "confidence": recipe.quality.confidence,
        "margin_percent": MARGIN_PERCENT,
        "runs": list(runs),
        "arms": arm_rows,
    }


def _read(folder: Path) -> dict[str, Any]:
    return {**read_vouched(folder / "quality.json"), "ledger": read_vouched(folder / "ledger.json")}


def _arm_row(recipe: UpdateRecipe, arm: Arm, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    confidence = recipe.quality.confidence
    executed = runs[0]["ledger"]["executed"]
    return {
        "label": arm.label,
        "set": arm.set,
        "paradigm": executed["paradigm"],
        "versions": runs[0]["releases"],
        "own": {name: _over_seeds([run["own"][name] for run in runs], confidence) for name in runs[0]["releases"]},
        "seen": {name: _over_seeds([run["seen"][name] for run in runs], confidence) for name in runs[0]["releases"]},
        "steps_at_release": _steps_at_release(runs[0]["ledger"]["segments"], runs[0]["releases"]),
        "executed": {key: executed[key] for key in ("steps", "tokens", "flops", "ratio_to_ptfs")},
        "seconds": [run["ledger"]["executed"]["seconds"] for run in runs],
        "repeated_steps": [run["ledger"]["executed"]["repeated_steps"] for run in runs],
    }


def _differences(
    recipe: UpdateRecipe,
    arm: Arm,
    arms: Sequence[Arm],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """How much higher the arm's perplexity is than its reference's, in per cent, for each release and measure."""
    labels = [other.label for other in arms]
    reference = arm.against or ("ptfs" if "ptfs" in labels and arm.label != "ptfs" else None)
    if reference is None:
        return {}
    result: dict[str, Any] = {}
    versions = found[arm.label, seeds[0]]["releases"]
    for measure in ("own", "seen"):
        entry = {}
        for at, release in enumerate(versions):
            counted = versions[: at + 1] if measure == "seen" else [release]
            singles = []
            for seed in seeds:
                one, two = (found[label, seed]["cells"][release] for label in (arm.label, reference))
                resampling = derive(seed, "difference", release, measure)
                singles.append(difference(one, two, counted, recipe.quality, resampling))
            percents = [float(str(single["percent"])) for single in singles]
            over_seeds = seeds_interval(percents, recipe.quality.confidence)
            entry[release] = {
                "percent": float(np.mean(percents)),
                "interval": list(over_seeds) if over_seeds else singles[0]["interval"],
                "each_seed": singles,
            }
        result[measure] = entry
    return {"against": reference, "difference": result}


def _over_seeds(values: Sequence[float], confidence: float) -> dict[str, Any]:
    interval = seeds_interval(values, confidence)
    return {"mean": float(np.mean(values)), "interval": list(interval) if interval else None, "values": list(values)}


def _steps_at_release(segments: Sequence[Mapping[str, Any]], releases: Sequence[str]) -> dict[str, int]:
    """Optimizer steps executed when each version was released, all segments before it counted."""
    total, steps = 0, []
    for segment in segments:
        total += segment["executed_steps"]
        if segment["kind"] != "main":
            steps.append(total)
    return dict(zip(releases, steps, strict=True))
