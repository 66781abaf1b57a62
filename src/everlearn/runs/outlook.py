"""What `--plan` tells of a run or a comparison: the plan of each, the disk, and what a trial adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from everlearn.crew import crew
from everlearn.layout import BASE_STAGE
from everlearn.methods.stack import assemble
from everlearn.progress import LineProgress, Progress
from everlearn.recipe import MethodConfig, Recipe, cache_folder
from everlearn.room import free_on_disk, refuse_without_room
from everlearn.run_folder import COMPARISON, RUN, refuse_other
from everlearn.runs.claim import refuse_foreign
from everlearn.runs.compare import chosen, labels_of, runs_of
from everlearn.runs.plan import TRAINING, Part, Plan, least_bytes, plan_run, totals
from everlearn.runs.prepare import prepare
from everlearn.runs.probe import Trial, probed


@dataclass(frozen=True)
class Outlook:
    """What is going to be done and what it takes.

    Attributes:
        folder: Of the run or comparison.
        plans: One a method; each seed is as the first.
        seeds: How many.
        trial: What it took beside time; None: there was none, since several processes share the work.
        disk_needed: Bytes at least, of weights and states alone.
        disk_free: Bytes on the disk of the folder.
        is_comparison: Whether runs share what they have in common.
    """

    folder: Path
    plans: Sequence[Plan]
    seeds: int
    trial: Trial | None
    disk_needed: int
    disk_free: int
    is_comparison: bool = False

    @property
    def found(self) -> list[Part]:
        """Of one seed, what a run makes that later ones find: what the base does, and plain first stages."""
        parts: list[Part] = []
        plain = [plan for plan in self.plans if plan.begins_plainly]
        for plan in self.plans[1:]:
            parts += [part for part in plan.parts if part.stage == BASE_STAGE]
        for plan in plain[1:]:
            first = next(part.stage for part in plan.parts if part.kind == TRAINING)
            alike = [part for part in plain[0].parts if part.stage == first]
            parts += [part for part in plan.parts if part.stage == first and part in alike]
        return parts

    @property
    def total(self) -> Part:
        """Of everything, what is shared counted once."""
        every, found = totals([part for plan in self.plans for part in plan.parts]), totals(self.found)

        def rest(key: str) -> int | float | None:
            all_, less = getattr(every, key), getattr(found, key)
            return None if all_ is None or less is None else self.seeds * (all_ - less)

        keys = ("steps", "trained_tokens", "read_tokens", "most_written", "written", "seconds")
        return Part("", "", **{key: rest(key) for key in keys})  # type: ignore[arg-type]

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        total = {key: value for key, value in self.total.to_json().items() if key not in ("stage", "kind")}
        return {
            "plans": {plan.label: plan.to_json() for plan in self.plans},
            "seeds": self.seeds,
            "total": total,
            "memory": self.trial and self.trial.memory.to_json(),
            "waited_share": self.trial and self.trial.waited,
            "disk": {"needed": self.disk_needed, "free": self.disk_free},
        }


def look_ahead(
    recipe: Recipe,
    methods: Sequence[MethodConfig] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    is_comparison: bool = False,
    progress: Progress | None = None,
) -> Outlook:
    """Plans a run, or a comparison, and tries for about a minute what it does; writes nothing.

    Args:
        recipe: To be planned.
        methods: As `compare` takes them.
        seeds: The same.
        is_comparison: Whether it is a comparison.
        progress: Where to show what goes on.

    Raises:
        UserError: what the run would be refused for.
    """
    progress = progress or LineProgress()
    folder = Path(recipe.runs_dir) / recipe.name
    if is_comparison:
        methods, seeds = chosen(recipe, methods, seeds)
        for method in methods:
            assemble(method)  # refuses names and options of which folders would be called
        runs = runs_of(recipe, methods, seeds)
        labels = labels_of(methods)
    else:
        methods, seeds, runs, labels = [recipe.method], [recipe.seed], {"": recipe}, [recipe.method.name]
    refuse_other(folder, COMPARISON if is_comparison else RUN)
    for name, one in runs.items():
        refuse_foreign(folder / name, one)
    of_first_seed = list(runs.values())[: len(methods)]
    prepared = [prepare(one, trains=True) for one in of_first_seed]
    for note in prepared[0].formats.notes:
        progress.say(note)
    cache = cache_folder(recipe.runs_dir, recipe.cache_dir)
    needed = least_bytes(prepared[0], [one.method for one in prepared], len(seeds))
    refuse_without_room(folder, cache, needed)
    plans = [plan_run(one, label) for one, label in zip(prepared, labels, strict=True)]
    trial = None
    if crew().count == 1:
        plans, trial = probed(plans, prepared[0], progress)
    return Outlook(folder, plans, len(seeds), trial, needed, free_on_disk(folder), is_comparison)
