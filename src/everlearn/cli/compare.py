"""`everlearn compare`: several methods over one stream."""

from __future__ import annotations

import argparse
from pathlib import Path

from everlearn.visible import tell


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display, add_plan, add_recipe

    parser = commands.add_parser("compare", help="run several methods over one stream, sharing what they share")
    add_recipe(parser, {"--seeds": ("seeds", "such as 0,1,2; nothing: the recipe's seed")})
    parser.add_argument(
        "--methods",
        metavar="LIST",
        help="such as sequential,random_rehearsal:ratio=0.01,ssr+l2:l2.strength=1 (options after a "
        "colon, apart by ';'); nothing: the recipe's 'compare'",
    )
    add_plan(parser)
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Runs every method with every seed."""
    from everlearn.cli.options import make_display, read_recipe
    from everlearn.cli.run import show
    from everlearn.runs.compare import compare, parse_methods

    recipe = read_recipe(args)
    methods = parse_methods(args.methods, recipe) if args.methods is not None else None
    if args.plan:
        from everlearn.cli.plan_tables import plan_tables
        from everlearn.runs.outlook import look_ahead

        tell(plan_tables(look_ahead(recipe, methods, is_comparison=True, progress=make_display(args))))
        return 0
    folder = Path(recipe.runs_dir) / recipe.name
    compare(recipe, methods, progress=make_display(args, folder))
    show(folder)
    return 0
