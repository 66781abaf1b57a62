"""`everlearn synthesize`: only the synthetic rehearsal rows of a task, step by step, without any training."""

from __future__ import annotations

import argparse
from pathlib import Path

from everlearn.errors import UserError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display, add_recipe

    parser = commands.add_parser("synthesize", help="write synthetic rehearsal data of a recipe's tasks")
    add_recipe(parser)
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="only this task (repeatable)")
    parser.add_argument("--count", type=int, default=None, help="rows to make (nothing: method.ratio of the task's)")
    parser.add_argument(
        "--checkpoint", metavar="FOLDER", help="a stage's training folder, whose model answers the inputs again"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the data goes (RUNS_DIR/NAME-synthesis)")
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Synthesizes and says where the rows are."""
    from everlearn.cli.options import make_display, read_recipe
    from everlearn.runs.synthesis import synthesize_stream

    if args.count is not None and args.count < 1:
        raise UserError(f"--count {args.count}: ask for at least one row.")
    recipe = read_recipe(args)
    out = Path(args.out) if args.out else Path(recipe.runs_dir) / f"{recipe.name}-synthesis"
    checkpoint = Path(args.checkpoint) if args.checkpoint else None
    made = synthesize_stream(recipe, args.task, checkpoint, out, make_display(args, out), count=args.count)
    for path, found in made.items():
        dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in found.dropped.items() if count)
        print(f"{path}: {len(found.rows)} rows of {found.asked} asked for (dropped: {dropped or 'nothing'})")
    return 0
