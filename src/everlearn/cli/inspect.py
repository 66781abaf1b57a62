"""`everlearn inspect`: what the data of a recipe, or of data files, holds, before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import RecipeError
from everlearn.visible import tell

if TYPE_CHECKING:
    from everlearn.recipe import Recipe
    from everlearn.runs.inspection import Inspection, Lengths, TaskInspection

_LABELS = 8  # shown; the rest is counted


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import FLAGS, add_display, add_keys

    parser = commands.add_parser(
        "inspect",
        help="show what a recipe's data holds before anything runs",
        description="Shows of each task what was read, left out, joined or cut, its labels, metric and lengths, and "
        "its first rows as the model will see them. Trains and writes nothing. Exit code 2 where a run would refuse.",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        default=["embedded"],
        metavar="RECIPE|FILE",
        help="a YAML recipe, a run folder, the name of a recipe (embedded, the default), or data files and folders",
    )
    parser.add_argument("--rows", type=int, default=2, metavar="N", help="rows of each task to show (2)")
    add_keys(parser, FLAGS, example="training.max_prompt_tokens=256")
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Shows what can be read, then refuses what a run would refuse."""
    from everlearn.cli.options import make_display
    from everlearn.runs.inspection import inspect_data

    recipe, left_out = _recipe(args)
    found = inspect_data(recipe, rows=args.rows, is_whole=left_out is None, progress=make_display(args))
    for line in _lines(found, left_out or {}):
        tell(line)
    if found.refusal:
        raise found.refusal
    return 0


def _recipe(args: argparse.Namespace) -> tuple[Recipe, dict[str, str] | None]:
    """The recipe to look into; for data files one with a task each, and the files of folders that are left out."""
    from everlearn.cli.options import named_folder, read_keys
    from everlearn.ordinary_files import is_folder
    from everlearn.recipe import load_recipe, make_recipe, named_recipe, set_dotted
    from everlearn.runs.given_sources import tasks_of

    first = args.sources[0]
    stored = _stored(named_folder(first)) if is_folder(first) else None
    if stored or named_recipe(first) or first.lower().endswith((".yaml", ".yml")):
        if len(args.sources) > 1:
            raise RecipeError(f"give one recipe or data files, not {first} and {len(args.sources) - 1} more.")
        if stored is None:
            return load_recipe(first, read_keys(args)), None
        tree, left_out = stored.model_dump(mode="json"), None
    else:
        tasks, left_out = tasks_of(args.sources)
        tree = {"stream": {"tasks": [task.model_dump(mode="json") for task in tasks]}}
    for key, value in read_keys(args).items():
        set_dotted(tree, key, value)
    return make_recipe(tree, where="the command line"), left_out


def _stored(folder: Path) -> Recipe | None:
    """The recipe of a run's or a comparison's folder; None for anything else, such as a folder of data."""
    from everlearn.ordinary_files import is_regular
    from everlearn.runs.claim import recipe_of
    from everlearn.runs.compare import planned
    from everlearn.updates.folder import is_update

    pairs = (("recipe.yaml", "manifest.json"), ("recipe.yaml", "comparison.json"), ("plan.json", "comparison.json"))
    if not any(all(is_regular(folder / name) for name in pair) for pair in pairs):
        return None
    if is_update(folder):
        raise RecipeError(f"{folder} holds version updates: 'everlearn update {folder} --plan' says what is left out.")
    plan = planned(folder)
    return plan[0] if plan else recipe_of(folder)


def _lines(found: Inspection, left_out: dict[str, str]) -> Iterator[str]:
    for name, reason in left_out.items():
        yield f"left out: {name}: {reason}"
    yield from found.notes
    if found.scenario:
        classes = sum(len(task.labels) for task in found.tasks)
        yield f"{found.scenario}: {classes:,} classes in {len(found.tasks):,} tasks"
    for task in found.tasks:
        yield ""
        yield from _task(task, "classes" if found.scenario else "labels")
    for name, fault in found.faults.items():
        if fault != str(found.refusal):
            yield f"\n{name}: cannot be read: {fault}"
    if found.tasks:
        yield f"\nTokenizer of {found.model}, template {found.template}; the model takes in {found.context:,} tokens."
        yield "In \u27e6 \u27e7: a token of its own, never text of the data. \u21b5: a line break."


def _task(task: TaskInspection, noun: str) -> Iterator[str]:
    account = task.account
    yield account.task
    for name, part in account.parts.items():
        form = f" ({part.format})" if part.format else ""
        yield f"  {name}: {part.rows:,} rows of {part.source}{form}, {part.instances:,} instances"
    if account.held_out:
        yield f"  held out of the training rows for evaluation: {account.held_out:,}"
    why = f" ({account.metric_reason})" if account.metric_reason else ""
    yield f"  metric: {account.metric}{why}"
    if task.labels:
        shown = [f"{label!r} {rows:,}" for label, rows in list(task.labels.items())[:_LABELS]]
        more = f" and {len(task.labels) - _LABELS} more" if len(task.labels) > _LABELS else ""
        yield f"  {len(task.labels)} {noun}, with their training rows: {', '.join(shown)}{more}"
    for name, lengths, key in (
        ("prompts", task.prompts, "max_prompt_tokens"),
        ("answers", task.answers, "max_target_tokens"),
    ):
        if lengths:
            yield f"  tokens of {name}: {_length(lengths)}; training.{key} is {lengths.limit:,}{_over(lengths)}"
    for remark in account.remarks():
        yield f"  - {remark}"
    for row in task.rows:
        yield f"  row {row.id}, prompt of {row.prompt_tokens:,} tokens{_cut(row.prompt_tokens, task.prompts)}:"
        yield from (f"    | {line}" for line in row.prompt.split("\n"))
        yield f"  its answer of {row.answer_tokens:,} tokens{_cut(row.answer_tokens, task.answers)}:"
        yield from (f"    | {line}" for line in row.answer.split("\n"))


def _cut(tokens: int, lengths: Lengths | None) -> str:
    return f", cut to {lengths.limit:,}" if lengths and tokens > lengths.limit else ""


def _over(lengths: Lengths) -> str:
    return f", which {lengths.over:,} exceed" if lengths.over else ""


def _length(lengths: Lengths) -> str:
    if lengths.shortest == lengths.longest:
        return f"{lengths.longest:,} each"
    return (
        f"{lengths.shortest:,} to {lengths.longest:,} (half of them up to {lengths.median:,}, 95 % up to "
        f"{lengths.most:,})"
    )
