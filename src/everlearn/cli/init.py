"""`everlearn init`: a commented recipe from a folder of data files."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from everlearn.errors import DataError
from everlearn.ordinary_files import stat_of
from everlearn.visible import tell


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser("init", help="write a commented recipe from a folder of data files")
    parser.add_argument("folder", metavar="FOLDER", help="folder with one file (or train/eval pair) a task")
    parser.add_argument("--out", default=None, metavar="FILE", help="the recipe to write (FOLDER/recipe.yaml)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing recipe")


def run(args: argparse.Namespace) -> int:
    """Writes the recipe and says what to do next."""
    from everlearn.runs.recipe_writer import left_out_of, write_recipe

    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder / "recipe.yaml"
    is_there = stat_of(out) is not None
    if is_there and not args.force:
        raise DataError(f"{out} exists already: choose another --out, or overwrite it with --force.")
    if is_there and out.suffix not in (".yaml", ".yml"):
        raise DataError(f"{out} is no recipe, which --force would overwrite: choose another --out.")
    for line in left_out_of(write_recipe(folder, out)):
        tell(f"Left out {line}")
    tell(f"Wrote {out}. Read it, set model.base, then: everlearn run {shlex.quote(str(out))}")
    return 0
