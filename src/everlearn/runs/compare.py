"""Several methods (and seeds) over one stream, with shared artifacts.

Each run is an ordinary run folder below the comparison's folder; all share one cache, so the first stage is trained
once, the base model evaluated once and asked to synthesize once. `comparison.json` is rewritten after every run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from everlearn.checking import checked, first_double
from everlearn.errors import RecipeError, RunError, UserError
from everlearn.files import read_vouched, write_vouched
from everlearn.methods.stack import assemble
from everlearn.progress import LineProgress, Progress
from everlearn.recipe import LONGEST_NAME, NOT_OF_A_RUN, MethodConfig, Recipe, cache_folder, make_recipe, set_dotted
from everlearn.recipe_file import parse
from everlearn.recipe_method import JOIN, names_in
from everlearn.recipe_paths import found_path, kept_path, located, portable
from everlearn.room import refuse_without_room
from everlearn.run_folder import COMPARISON, kind_of, refuse_other, unmade_if_refused
from everlearn.runs.claim import refuse_foreign
from everlearn.runs.growth import refuse_other_stages
from everlearn.runs.loop import RunResult, execute, try_base
from everlearn.runs.plan import least_bytes
from everlearn.runs.prepare import (
    prepare,
    refuse_unfit_engine,
    refuse_unfit_sharding,
    tell_about,
    tell_targets,
    with_targets,
)


def parse_methods(text: str, recipe: Recipe) -> list[MethodConfig]:
    """Methods from the command line: `sequential,ssr,ssr:preset=faithful,ssr+l2:l2.strength=0.01`.

    A name takes the options that are not given from the recipe (`compare`, then `method`) where it names that method
    or stack; the methods of a stack that it does not name take theirs alike, one by one.

    Raises:
        RecipeError: an option without `=`.
    """
    listed = [*recipe.compare, recipe.method]
    known: dict[str, dict[str, Any]] = {}
    for method in [*listed, *(MethodConfig(name=part, **own) for one in listed for part, own in one.parts.items())]:
        known.setdefault(method.name, method.options)
    chosen = []
    for item in text.split(","):
        name, _, options = item.strip().partition(":")
        names = names_in(name)
        name = JOIN.join(names)
        parts = {part: known.get(part, {}) for part in names} if len(names) > 1 else {}
        tree: dict[str, Any] = {"name": name, **deepcopy(known.get(name, parts))}
        given: set[str] = set()
        for option in filter(None, options.split(";")):
            key, equals, value = option.partition("=")
            if not equals:
                raise RecipeError(f"--methods {item!r}: write options as name:key=value;key=value.")
            if key in given or key == "name":
                raise RecipeError(f"--methods {item!r}: give each option once, and the name before the colon.")
            given.add(key)
            set_dotted(tree, key, parse(value, f"--methods {item!r}: {value!r}"))
        chosen.append(checked(MethodConfig, tree, where=f"--methods {item!r}"))
    return chosen


def labels_of(methods: Sequence[MethodConfig]) -> list[str]:
    """A short distinct label for each method: its name, with the options that tell it from its namesakes."""
    labels = []
    for method in methods:
        namesakes = [_by_key(other) for other in methods if other.name == method.name]
        differing = [
            f"{key}={value}"
            for key, value in _by_key(method).items()
            if any(other.get(key) != value for other in namesakes)
        ]
        labels.append(" ".join([method.name, *differing]))
    for label in labels:
        if labels.count(label) > 1:
            raise RecipeError(f"method {label!r} stands twice in the comparison: give its options different values.")
    return labels


def _by_key(method: MethodConfig) -> dict[str, object]:
    """The options, of a stack with the name of the method before each."""
    if JOIN not in method.name:
        return method.options
    return {f"{part}.{key}": value for part, options in method.parts.items() for key, value in options.items()}


def compare(
    recipe: Recipe,
    methods: Sequence[MethodConfig] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, list[RunResult]]:
    """Runs every method with every seed.

    Args:
        recipe: What the runs have in common.
        methods: Nothing means the recipe's `compare`, or, where seeds are given, its one method.
        seeds: Nothing means the recipe's `seeds`, or its one seed.
        progress: Where to show what goes on.

    Returns:
        For each label, one result a seed.

    Raises:
        UserError: as `execute`; everything is checked for all methods before the first training.
    """
    progress = progress or LineProgress()
    methods, seeds = chosen(recipe, methods, seeds)
    assembled = [assemble(method) for method in methods]  # refuses names and options of which folders would be called
    labels = labels_of(methods)
    folder = Path(recipe.runs_dir) / recipe.name
    refuse_other(folder, COMPARISON)
    for name, one in runs_of(recipe, methods, seeds).items():
        refuse_foreign(folder / name, one)
    with unmade_if_refused(folder):
        if not (folder / "plan.json").exists():  # else what stands there stays until this one is known to be sound
            write_vouched(folder / "plan.json", _plan(recipe, methods, seeds, folder))
        sound = prepare(recipe.model_copy(update={"method": methods[0]}), folder, trains=True)
        for other in assembled[1:]:
            refuse_unfit_sharding(recipe, other)
            other.check(sound.facts)
            if sound.engine is not None:
                refuse_unfit_engine(sound, sound.engine, other, trains=True)
        cache = cache_folder(recipe.runs_dir, recipe.cache_dir)
        refuse_without_room(folder, cache, least_bytes(sound, [sound.method, *assembled[1:]], len(seeds)))
        for name, one in runs_of(recipe, methods, seeds).items():
            if (folder / name / "manifest.json").exists():
                known = read_vouched(folder / name / "manifest.json")
                refuse_other_stages(folder / name, known, assemble(one.method), sound.stream)
    tell_targets(recipe, sound, progress)
    tell_about(sound.stream, progress)
    recipe = with_targets(recipe, sound)
    write_vouched(folder / "plan.json", _plan(recipe, methods, seeds, folder))
    runs = [(labels[at % len(labels)], one) for at, one in enumerate(runs_of(recipe, methods, seeds).values())]
    results: dict[str, list[RunResult]] = {label: [] for label in labels}
    entries: list[dict[str, object]] = []
    for label, one in runs[: len(labels)]:  # the first seed's; others are tried in their turn
        try_base(one, folder=folder / one.name, label=label, progress=progress)
    for label, one in runs:
        progress.say(f"{label}, seed {one.seed}")
        results[label].append(execute(one, folder=folder / one.name, label=label, progress=progress))
        entries.append(
            {
                "label": label,
                "method": one.method.name,
                "options": one.method.options,
                "seed": one.seed,
                "folder": one.name,
            }
        )
        write_vouched(
            folder / "comparison.json",
            {"name": recipe.name, "runs": entries, "summary": _summary(results, recipe.evaluation.confidence)},
        )
    return results


def chosen(
    recipe: Recipe, methods: Sequence[MethodConfig] | None, seeds: Sequence[int] | None
) -> tuple[list[MethodConfig], list[int]]:
    """Methods and seeds of a comparison, those of the recipe where none are given.

    Raises:
        RecipeError: there are none.
    """
    if not (methods or recipe.compare or seeds or recipe.seeds):
        raise RecipeError(
            "there is nothing to compare: name methods, such as --methods sequential,ssr, or list them under the "
            "recipe's key 'compare'."
        )
    return list(methods or recipe.compare or [recipe.method]), list(seeds or recipe.seeds or [recipe.seed])


def runs_of(recipe: Recipe, methods: Sequence[MethodConfig], seeds: Sequence[int]) -> dict[str, Recipe]:
    """Folder name to recipe of each run, all methods of a seed together.

    Raises:
        RecipeError: two runs would share a folder, or its name would be too long.
    """
    cache = os.path.abspath(cache_folder(recipe.runs_dir, recipe.cache_dir))
    runs = []
    for seed in seeds:
        for label, method in zip(labels_of(methods), methods, strict=True):
            name = f"{''.join(c if c.isalnum() or c in '._+-' else '-' for c in label)}-s{seed}"
            if len(name) > LONGEST_NAME:
                raise RecipeError(
                    f"the folder of method {label!r} would be called by {len(name)} letters, and a system takes no "
                    f"more than {LONGEST_NAME} and something behind: compare methods that differ in fewer options."
                )
            own = {"name": name, "seed": seed, "method": method, "cache_dir": cache}
            runs.append(recipe.model_copy(update=own))
    if double := first_double(one.name for one in runs):
        raise RecipeError(f"two methods of the comparison would share the folder {double}: name their options apart.")
    return {one.name: one for one in runs}


def _plan(recipe: Recipe, methods: Sequence[MethodConfig], seeds: Sequence[int], folder: Path) -> dict[str, object]:
    """What `plan.json` holds, from which a comparison goes on."""
    cache = kept_path(os.path.abspath(cache_folder(recipe.runs_dir, recipe.cache_dir)), folder)
    kept = portable(recipe.model_copy(update={"cache_dir": cache}), folder)
    return {
        "folder": str(folder.absolute()),
        "recipe": kept.model_dump(mode="json", exclude=set(NOT_OF_A_RUN)),
        "methods": [{"name": method.name, **method.options} for method in methods],
        "seeds": list(seeds),
    }


def planned(folder: Path) -> tuple[Recipe, list[MethodConfig], list[int]] | None:
    """Recipe, methods and seeds of a comparison's folder; None when the folder is no comparison.

    Raises:
        RunError: the plan is corrupt.
    """
    path = folder / "plan.json"
    if kind_of(folder) != COMPARISON or not path.exists():
        return None
    try:
        plan = read_vouched(path)
        cache = plan["recipe"].get("cache_dir")
        places = {
            "runs_dir": str(folder.parent),
            "cache_dir": cache and found_path(cache, folder, plan.get("folder")),
        }
        recipe = make_recipe({**plan["recipe"], **places, "seeds": plan["seeds"]}, where=str(path))
        methods = [checked(MethodConfig, method, where=str(path)) for method in plan["methods"]]
        return located(recipe.model_copy(update={"seeds": []}), folder, plan.get("folder")), methods, recipe.seeds
    except (UserError, AttributeError, TypeError, KeyError):
        raise RunError(
            f"{path} is corrupt: give the comparison's own command again, which writes it anew; finished steps are "
            "kept."
        ) from None


def _summary(results: dict[str, list[RunResult]], confidence: float) -> dict[str, object]:
    """Mean and t interval over seeds of each continual metric."""
    from everlearn.evaluation.bootstrap import seeds_interval

    summary: dict[str, object] = {}
    for label, runs in results.items():
        if not runs:
            continue
        row: dict[str, object] = {"seeds": len(runs)}
        names = [name for name, value in runs[0].metrics.items() if isinstance(value, dict) and "value" in value]
        for name in names:
            values = [run.metrics[name]["value"] for run in runs]  # type: ignore[index]
            if any(value is None for value in values):
                continue
            interval = seeds_interval(values, confidence)
            low, high = interval if interval else (None, None)
            row[name] = {"mean": sum(values) / len(values), "low": low, "high": high, "values": values}
        summary[label] = row
    return summary
