"""`everlearn run`: one recipe from the first stage to the report."""

from __future__ import annotations

import argparse
from pathlib import Path

from everlearn.visible import tell


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display, add_plan, add_recipe

    parser = commands.add_parser("run", help="train a model task after task and measure what it keeps")
    add_recipe(parser)
    add_plan(parser)
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the recipe; the same command goes on where a killed run stopped."""
    from everlearn.cli.options import make_display, read_recipe
    from everlearn.recipe import Recipe

    recipe: Recipe = read_recipe(args)
    if args.plan:
        from everlearn.cli.plan_tables import plan_tables
        from everlearn.runs.outlook import look_ahead

        tell(plan_tables(look_ahead(recipe, progress=make_display(args))))
        return 0
    folder = Path(recipe.runs_dir) / recipe.name
    return run_folder(recipe, folder, make_display(args, folder))


def run_folder(recipe, folder: Path, progress) -> int:  # type: ignore[no-untyped-def]
    """Executes one run and shows its table and report."""
    from everlearn.runs.loop import execute

    execute(recipe, folder=folder, progress=progress)
    show(folder)
    return 0


def show(folder: Path) -> None:
    """Writes the report and prints the tables."""
    from everlearn.report.html import write_report
    from everlearn.report.text import print_tables

    report = write_report(folder)
    print_tables(folder)
    tell(f"Report: {report}")
    if (folder / "model").is_dir():
        tell(f"Model: {folder / 'model'} (how to load and ask it: README.md in it)")
