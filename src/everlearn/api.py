"""The Python API: load a stream, choose a method, run, read the matrix; and what else the commands do.

The same recipe keys as on the command line; everything here is also reachable as `everlearn.<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.checking import checked
from everlearn.errors import RecipeError
from everlearn.files import write_jsonl
from everlearn.recipe import EMBEDDED, MethodConfig, Recipe, load_recipe, make_recipe
from everlearn.recipe_paths import anchored
from everlearn.run_folder import RUN, refuse_other

if TYPE_CHECKING:
    from pydantic import BaseModel

    from everlearn.data.instance import TaskStream
    from everlearn.progress import Progress
    from everlearn.runs.inspection import Inspection
    from everlearn.runs.loop import RunResult
    from everlearn.runs.outlook import Outlook
    from everlearn.synthesis.chains import Chains
    from everlearn.synthesis.pipeline import Synthesis
    from everlearn.updates.config import UpdateRecipe


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
    from everlearn.runs.claim import claim
    from everlearn.runs.loop import execute

    if stream is not None and not isinstance(stream, TaskStream):
        raise RecipeError(f"stream is of type {type(stream).__name__}: give what everlearn.load_stream returns.")
    if method is not None:
        sections = {"method": method, **sections}
    wanted = _recipe(recipe or EMBEDDED, sections)
    if stream is not None:
        folder = Path(wanted.runs_dir) / wanted.name
        files = _files_of(stream, folder.resolve() / "stream")
        entries = [
            {"name": task.name, "metric": task.metric, "labels": list(task.labels), **paths}
            for task, paths in zip(stream, files, strict=True)
        ]
        wanted = make_recipe(
            {**wanted.model_dump(mode="json"), "stream": {"tasks": entries, "scenario": stream.scenario}}
        )
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
    base = _recipe(recipe)
    if seeds is not None:
        base = make_recipe({**base.model_dump(mode="json"), "seeds": list(seeds)})
    return run_all(
        base, [checked(MethodConfig, method, where=f"methods, {method!r}") for method in methods], progress=progress
    )


def plan(
    recipe: Recipe | str | Path = EMBEDDED,
    methods: Sequence[str | dict[str, Any] | list[str | dict[str, Any]]] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    progress: Progress | None = None,
    **sections: Any,
) -> Outlook:
    """What a run is going to take, or, where methods are given, a comparison: see `everlearn.runs.outlook.Outlook`.

    Args:
        recipe: A recipe, a YAML file, or `embedded`.
        methods: Of a comparison, as `compare` takes them.
        seeds: The same.
        progress: Where to show what goes on; nothing for silence.
        sections: Recipe keys to set.

    Raises:
        UserError: what the run would be refused for.
    """
    from everlearn.runs.outlook import look_ahead

    chosen = [checked(MethodConfig, method, where=f"methods, {method!r}") for method in methods or ()]
    is_comparison = methods is not None
    return look_ahead(_recipe(recipe, sections), chosen, seeds, is_comparison=is_comparison, progress=progress)


def inspect(recipe: Recipe | str | Path = EMBEDDED, *, rows: int = 2) -> Inspection:
    """What the data of a recipe holds, before anything runs: see `everlearn.runs.inspection.Inspection`."""
    from everlearn.runs.inspection import inspect_data

    return inspect_data(_recipe(recipe), rows=rows)


def add(
    run: str | Path,
    train: str | Path,
    *,
    evaluation: str | Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    **keys: Any,
) -> RunResult | dict[str, list[RunResult]]:
    """Teaches a run, or every run of a comparison, one more task; only the new stage is trained.

    Args:
        run: The folder of the run or comparison.
        train: File or folder with the training rows.
        evaluation: Held-out rows; nothing: a tenth of the training rows.
        name: Of the task; nothing: that of the training file.
        progress: Where to show what goes on; nothing for silence.
        keys: Further keys of a task, as under `stream.tasks` of a recipe.

    Returns:
        As `run`; of a comparison as `compare`.

    Raises:
        UserError: something cannot be done as asked.
    """
    from everlearn.progress import LineProgress
    from everlearn.runs.add import add_task

    given = {"train": str(train), "evaluation": evaluation and str(evaluation), "name": name, **keys}
    task = {key: value for key, value in given.items() if value is not None}
    return add_task(Path(run), task, progress or LineProgress())


def update(
    recipe: UpdateRecipe | str | Path = EMBEDDED,
    *,
    compare: bool = False,
    add_version: str | Path | None = None,
    version_id: str | None = None,
    column: str | None = None,
    progress: Progress | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """Trains the versions of a language model, compares the ways of doing so, or adds a version to a run.

    Args:
        recipe: A recipe, a YAML file, a run folder to go on with, or `embedded`.
        compare: Whether to run all arms of the recipe.
        add_version: With a run folder: the data of one more version.
        version_id: Name of that version; nothing: v1, v2, ...
        column: Key of the text in its rows.
        progress: Where to show what goes on; nothing for silence.
        sections: Recipe keys to set, such as `name="mine"`, `schedule={"maximal_rate": 1e-3}`.

    Returns:
        `folder`, `ledger`, `costs` and `quality` of the run; of a comparison what its `comparison.json` holds.

    Raises:
        UserError: something cannot be done as asked.
    """
    from everlearn.progress import LineProgress
    from everlearn.updates import folder, growth
    from everlearn.updates.compare import compare as run_all
    from everlearn.updates.config import UpdateRecipe, load_update_recipe
    from everlearn.updates.executor import execute

    place = Path(recipe) if isinstance(recipe, str | Path) and Path(recipe).is_dir() else None
    if place is None and add_version is not None:
        raise RecipeError(f"add_version goes with a run folder, and {recipe} is none: give runs/NAME.")
    if place is not None and (sections or compare):
        raise RecipeError(f"{recipe} is a run folder with a recipe of its own: leave out what would change it.")
    if place is not None and add_version is not None:
        longer = growth.longer(place, str(add_version), version_id, column)
        return execute(longer, folder=place, progress=progress)
    if place is not None and folder.is_comparison(place):
        return run_all(folder.comparison_of(place), progress or LineProgress())
    if place is not None:
        return execute(folder.recipe_of(place), folder=place, progress=progress)
    wanted = recipe if isinstance(recipe, UpdateRecipe) else load_update_recipe(_path(recipe))
    if sections:
        wanted = checked(UpdateRecipe, _merged(wanted, sections), where="recipe")
    wanted = anchored(wanted, None)
    return run_all(wanted, progress or LineProgress()) if compare else execute(wanted, progress=progress)


def synthesize(
    recipe: Recipe | str | Path = EMBEDDED, *, progress: Progress | None = None, **sections: Any
) -> Mapping[Path, Synthesis | Chains]:
    """Makes only what models write of a recipe's tasks: rehearsal rows, or walks. Gives file to what was made.

    Args:
        recipe: A recipe, a YAML file, or `embedded`.
        progress: Where to show what goes on; nothing for silence.
        sections: Recipe keys to set, such as `synthesize={"tasks": ["routing"], "count": 30}`.

    Raises:
        UserError: something cannot be done as asked.
    """
    from everlearn.progress import LineProgress
    from everlearn.runs.synthesis import folder_of, synthesize_stream

    wanted = _recipe(recipe, sections)
    return synthesize_stream(wanted, folder_of(wanted), progress or LineProgress())


def evaluate(
    recipe: Recipe | str | Path = EMBEDDED,
    *,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
    **sections: Any,
) -> dict[str, Any]:
    """Scores one model state on a recipe's tasks, without training.

    Returns `tasks` and `general`, and `benchmarks` where the recipe asks any.

    Args:
        recipe: A recipe, a YAML file, or `embedded`.
        checkpoint: A stage's training folder or a run's model folder; nothing: the recipe's, or its base.
        progress: Where to show what goes on; nothing for silence.
        sections: Recipe keys to set.

    Raises:
        UserError: something cannot be done as asked.
    """
    from everlearn.progress import LineProgress
    from everlearn.runs.evaluation import evaluate_checkpoint, folder_of

    if checkpoint is not None:
        sections["evaluate"] = {"checkpoint": str(checkpoint)}
    wanted = _recipe(recipe, sections)
    found = wanted.evaluate.checkpoint
    return evaluate_checkpoint(wanted, Path(found) if found else None, folder_of(wanted), progress or LineProgress())


def _recipe(given: Recipe | str | Path, sections: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with some keys set, its paths absolute."""
    base = given if isinstance(given, Recipe) else load_recipe(_path(given))
    return anchored(make_recipe(_merged(base, sections)) if sections else base, None)


def _path(given: object) -> str | Path:
    if isinstance(given, str | Path):
        return given
    kind = type(given).__name__
    raise RecipeError(f"recipe is of type {kind}: give a Recipe, a YAML file, or its keys one by one (name='mine').")


def _merged(base: BaseModel, sections: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe with others set; those of a section one by one."""
    tree = base.model_dump(mode="json")
    for key, value in sections.items():
        inner = isinstance(value, dict) and isinstance(tree.get(key), dict) and key != "method"
        tree[key] = {**tree[key], **value} if inner else value
    return tree


def _files_of(stream: TaskStream, folder: Path) -> list[dict[str, str]]:
    """Where the rows of each task go: files that the readers take."""
    kinds = ("train", "evaluation", "demonstrations")
    return [
        {kind: str(folder / f"{task.name}.{kind}.jsonl") for kind in kinds if getattr(task, kind) or kind != kinds[-1]}
        for task in stream
    ]
