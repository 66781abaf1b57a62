"""`everlearn update`: plans, runs and compares version updates of a language model; adds a version to a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import RecipeError
from everlearn.ordinary_files import is_folder, stat_of
from everlearn.visible import tell

if TYPE_CHECKING:
    from everlearn.progress import Progress
    from everlearn.updates.config import UpdateRecipe

FLAGS = {
    "--name": ("name", "name of the run; its folder is RUNS_DIR/NAME"),
    "--seed": ("seed", "root of every random stream"),
    "--runs-dir": ("runs_dir", "where run folders are made"),
    "--cache-dir": ("cache_dir", "tokenised blocks shared by runs"),
    "--seeds": ("seeds", "with --compare, such as 0,1,2; nothing: the recipe's seed"),
    "--paradigm": ("paradigm", "ptfs (from scratch), cpt (continued) or path_switching"),
    "--branch-fraction": ("path.branch_fraction", "length of a branch as a share of its version"),
    "--schedule": ("schedule.name", "cosine, knee, multistep or constant"),
    "--maximal-rate": ("schedule.maximal_rate", "learning rate of the main path"),
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display, add_keys

    parser = commands.add_parser(
        "update",
        help="train the versions of a language model as new text arrives, by path switching or as before",
        description="Makes one release per version of raw text: from scratch, by continual pre-training, or by "
        "learning-rate path switching. The same command goes on where a killed run stopped. Several processes: "
        "accelerate launch -m everlearn update ...",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        default="embedded",
        help="a YAML recipe, a run folder, 'embedded' (the default), or a sweep such as 'embedded:branch_fraction'",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--plan", action="store_true", help="print segments, steps, tokens, FLOPs and cost; train nothing"
    )
    what.add_argument("--compare", action="store_true", help="run all three paradigms (or the recipe's arms)")
    what.add_argument(
        "--add-version", metavar="DATA", help="with a run folder: train what DATA adds (see a version's 'data')"
    )
    parser.add_argument("--version-id", metavar="ID", help="name of the added version (nothing: v1, v2, ...)")
    parser.add_argument("--column", metavar="NAME", help="key of the text in the added version's rows (text)")
    add_keys(parser, FLAGS, example="training.batch_blocks=8")
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Plans, runs, compares, or adds a version."""
    tell(_run(args))
    return 0


def _run(args: argparse.Namespace) -> str:
    from everlearn.cli.options import make_display
    from everlearn.cli.update_tables import plan_tables
    from everlearn.room import refuse_without_room
    from everlearn.updates.growth import longer
    from everlearn.updates.prepare import least_bytes, prepare

    recipe, folder = _recipe(args)
    if args.plan:
        prepared = prepare(recipe, progress=make_display(args))
        refuse_without_room(folder, folder, least_bytes(prepared))
        return plan_tables(recipe, prepared)
    display = make_display(args, folder)
    if args.compare:
        return compared(recipe, display)
    if args.add_version is not None:
        return trained(longer(folder, args.add_version, args.version_id, args.column), folder, display)
    if is_folder(args.recipe, RecipeError):
        return gone_on_with(folder, display)
    return trained(recipe, folder, display)


def gone_on_with(folder: Path, progress: Progress) -> str:
    """Finishes what a folder holds, a run or a comparison; returns its tables."""
    from everlearn.updates.folder import comparison_of, is_comparison, recipe_of

    if is_comparison(folder):
        return compared(comparison_of(folder), progress)
    return trained(recipe_of(folder), folder, progress)


def trained(recipe: UpdateRecipe, folder: Path, progress: Progress) -> str:
    """Runs a recipe; returns its tables."""
    from everlearn.cli.update_tables import run_tables
    from everlearn.updates.executor import execute

    return run_tables(folder, execute(recipe, folder=folder, progress=progress))


def compared(recipe: UpdateRecipe, progress: Progress) -> str:
    """Runs the arms of a comparison; returns its tables."""
    from everlearn.cli.update_tables import comparison_tables
    from everlearn.updates.compare import compare

    return comparison_tables(Path(recipe.runs_dir) / recipe.name, compare(recipe, progress))


def _recipe(args: argparse.Namespace) -> tuple[UpdateRecipe, Path]:
    """The recipe and its run folder; a run folder stands for the recipe that it was made with."""
    from everlearn.cli.options import named_folder, read_keys
    from everlearn.updates.config import load_update_recipe
    from everlearn.updates.folder import comparison_of, is_comparison, recipe_of

    overrides = read_keys(args)
    if args.add_version is None and (args.version_id is not None or args.column is not None):
        raise RecipeError("--version-id and --column say more of the version that --add-version adds: give that too.")
    if is_folder(args.recipe, RecipeError):
        folder = named_folder(args.recipe)
        seeds = overrides.pop("seeds", None) if args.compare else None
        if overrides:
            raise RecipeError(
                f"{args.recipe} is a run folder with a recipe of its own: leave out {sorted(overrides)}."
            )
        if is_comparison(folder):
            return comparison_of(folder, seeds), folder
        recipe = recipe_of(folder)
        if args.compare:
            raise RecipeError(f"{folder} is one run: give --compare a recipe, or the folder of a comparison.")
        return recipe, folder
    if args.add_version is not None:
        raise RecipeError(f"--add-version goes with a run folder, and {args.recipe} is none: give runs/NAME.")
    if "seeds" in overrides and not args.compare:
        raise RecipeError("--seeds are those of a comparison: give --compare too, or one --seed.")
    recipe = load_update_recipe(args.recipe, overrides)
    folder = Path(recipe.runs_dir) / recipe.name
    stat_of(folder, RecipeError)  # before anything is read, where its name is none that a folder can have
    return recipe, folder
