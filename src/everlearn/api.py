"""The Python API: load a stream, choose a method, run, read the matrix.

The same recipe keys as on the command line; everything here is also reachable as `everlearn.<name>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.checking import checked
from everlearn.errors import RecipeError
from everlearn.files import write_jsonl
from everlearn.recipe import EMBEDDED, MethodConfig, Recipe, load_recipe, make_recipe
from everlearn.recipe_paths import anchored
from everlearn.run_folder import RUN, refuse_other

if TYPE_CHECKING:
    from everlearn.data.instance import TaskStream
    from everlearn.progress import Progress
    from everlearn.runs.inspection import Inspection
    from everlearn.runs.loop import RunResult


def load_stream(
    tasks: str | Path | Sequence[dict[str, Any]] = EMBEDDED, *, seed: int | None = None, **options: Any
) -> TaskStream:
    """A stream of tasks: the embedded one, that of a recipe, or one read from files.

    Args:
        tasks: `embedded`, a recipe's YAML file, or task entries as under `stream.tasks` of a recipe (`name`, `train`,
            ...).
        seed: For held-out splits; nothing means the recipe's, which is 42 where there is none.
        options: Further keys of the recipe's `stream` section.

    Raises:
        UserError: a file or row cannot be used.
    """
    from everlearn.data.stream import load_stream as load

    if isinstance(tasks, str | Path) and str(tasks) != EMBEDDED:
        recipe = load_recipe(tasks, {f"stream.{key}": value for key, value in options.items()})
    else:
        recipe = make_recipe({"stream": {"tasks": tasks, **options}})
    return load(recipe.stream, seed=recipe.seed if seed is None else seed)


def run(
    recipe: Recipe | str | Path | None = None,
    *,
    stream: TaskStream | None = None,
    method: str | dict[str, Any] | Sequence[str | dict[str, Any]] | None = None,
    progress: Progress | None = None,
    **sections: Any,
) -> RunResult:
    """Runs a recipe, or the quickstart's with some keys changed, and returns its matrix and metrics.

    Args:
        recipe: A recipe, a YAML file, or nothing for the embedded default.
        stream: Tasks made in Python; they are written into the run folder, so that it can be resumed.
        method: A method's name, or a mapping with its name and options; of several that are stacked a list.
        progress: Where to show what goes on; nothing for silence.
        sections: Recipe keys to set, such as `name="mine"`, `training={"epochs": 5}`.

    Raises:
        UserError: something cannot be done as asked.
    """
    from everlearn.data.instance import TaskStream
    from everlearn.runs.loop import claim, execute

    if stream is not None and not isinstance(stream, TaskStream):
        raise RecipeError(f"stream is of type {type(stream).__name__}: give what everlearn.load_stream returns.")
    base = _recipe(recipe or EMBEDDED)
    tree = base.model_dump(mode="json")
    if method is not None:
        tree["method"] = method
    for key, value in sections.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
    wanted = anchored(make_recipe(tree), None)
    if stream is not None:
        folder = Path(wanted.runs_dir) / wanted.name
        files = _files_of(stream, folder.resolve() / "stream")
        entries = [
            {"name": task.name, "metric": task.metric, "labels": list(task.labels), **paths}
            for task, paths in zip(stream, files, strict=True)
        ]
        wanted = make_recipe({**wanted.model_dump(mode="json"), "stream": {"tasks": entries}})
        refuse_other(folder, RUN)
        claim(folder, wanted)  # before the files of a run that stands there would be written over
        for task, paths in zip(stream, files, strict=True):
            for kind, path in paths.items():
                write_jsonl(Path(path), (row.to_json() for row in getattr(task, kind)))
    return execute(wanted, progress=progress)


def compare(
    recipe: Recipe | str | Path,
    methods: Sequence[str | dict[str, Any] | list[str | dict[str, Any]]],
    *,
    seeds: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> dict[str, list[RunResult]]:
    """Runs several methods over one stream with shared artifacts; one result a seed for each label."""
    from everlearn.runs.compare import compare as run_all

    if isinstance(methods, str):
        raise RecipeError(f"methods is the text {methods!r}: give a list of methods, such as ['sequential', 'ssr'].")
    base = anchored(_recipe(recipe), None)
    if seeds is not None:
        base = make_recipe({**base.model_dump(mode="json"), "seeds": list(seeds)})
    return run_all(
        base, [checked(MethodConfig, method, where=f"methods, {method!r}") for method in methods], progress=progress
    )


def inspect(recipe: Recipe | str | Path = EMBEDDED, *, rows: int = 2) -> Inspection:
    """What the data of a recipe holds, before anything runs: see `everlearn.runs.inspection.Inspection`."""
    from everlearn.runs.inspection import inspect_data

    return inspect_data(_recipe(recipe), rows=rows)


def _recipe(given: Recipe | str | Path) -> Recipe:
    if isinstance(given, Recipe):
        return given
    if not isinstance(given, str | Path):
        kind = type(given).__name__
        raise RecipeError(
            f"recipe is of type {kind}: give a Recipe, a YAML file, or its keys one by one (name='mine')."
        )
    return load_recipe(given)


def _files_of(stream: TaskStream, folder: Path) -> list[dict[str, str]]:
    """Where the rows of each task go: files that the readers take."""
    kinds = ("train", "evaluation", "demonstrations")
    return [
        {kind: str(folder / f"{task.name}.{kind}.jsonl") for kind in kinds if getattr(task, kind) or kind != kinds[-1]}
        for task in stream
    ]
