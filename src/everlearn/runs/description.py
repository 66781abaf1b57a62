"""What the manifest says of a run: versions, machine, method, model, data, stages and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everlearn.crew import crew
from everlearn.environment import machine, versions

if TYPE_CHECKING:
    from everlearn.data.instance import Task
    from everlearn.methods.base import Stage
    from everlearn.recipe import Recipe
    from everlearn.runs.prepare import Prepared


def describe_run(
    prepared: Prepared, label: str, stages: Sequence[Stage], starts: Mapping[int, str]
) -> dict[str, object]:
    """All that is known when a run begins.

    Args:
        prepared: The run.
        label: How a comparison calls it.
        stages: In order.
        starts: As for `describe_stages`.
    """
    recipe, method = prepared.recipe, prepared.method
    return {
        "everlearn": versions()["everlearn"],
        "versions": versions(),
        "machine": {**machine(), "processes": crew().count},
        "method": {
            "name": method.name,
            "title": method.title,
            "options": method.described(),
            "traits": sorted(method.traits),
        },
        "label": label,
        "seed": recipe.seed,
        **prepared.formats.to_json(),
        "model": {
            "base": recipe.model.base,
            "tuning": recipe.model.tuning,
            "adapters_on": _targets(recipe),
            "fingerprint": prepared.base_fingerprint,
        },
        "template": prepared.template.name,
        "notes": list(prepared.stream.notes),
        "data": [account.to_json() for account in prepared.stream.accounts],
        "stages": describe_stages(stages, starts),
        "scenario": prepared.stream.scenario,
        "tasks": [_describe_task(task) for task in prepared.stream],
    }


def describe_stages(stages: Sequence[Stage], starts: Mapping[int, str]) -> list[dict[str, object]]:
    """The stages.

    Args:
        stages: In order.
        starts: Where those begin that do not carry on the one before, by index.
    """
    return [
        {
            "index": stage.index,
            "name": stage.name,
            "tasks": [task.name for task in stage.tasks],
            "start": starts.get(stage.index, "previous"),
        }
        for stage in stages
    ]


def _targets(recipe: Recipe) -> str | None:
    """Where the adapters sit, for the report; None: all weights are tuned."""
    targets = recipe.model.lora.targets
    if recipe.model.tuning != "lora":
        return None
    return targets if isinstance(targets, str) else ", ".join(targets)


def _describe_task(task: Task) -> dict[str, object]:
    return {
        "name": task.name,
        "metric": task.metric,
        "train_rows": len(task.train),
        "evaluation_rows": len(task.evaluation),
        "demonstrations": len(task.demonstrations),
        "classes": list(task.classes),
    }
