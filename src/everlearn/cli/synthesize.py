"""`everlearn synthesize`: only what models write of a task, rehearsal rows or walks, without any training."""

from __future__ import annotations

import argparse

from everlearn.visible import tell

FLAGS = {
    "--task": ("synthesize.tasks", "only these tasks"),
    "--count": ("synthesize.count", "rows to make of each task; nothing: method.ratio of the task's"),
    "--checkpoint": ("synthesize.checkpoint", "a stage's training folder, whose model answers the inputs again"),
    "--patterns": ("synthesize.patterns", "with --chains: a YAML file of further patterns"),
    "--out": ("synthesize.out", "where the data goes; nothing: RUNS_DIR/NAME-synthesis"),
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display, add_recipe

    parser = commands.add_parser("synthesize", help="write synthetic rehearsal data of a recipe's tasks, or walks")
    add_recipe(parser, FLAGS)
    text = "write what is thought before the answers of the tasks' own rows (synthesize.chains)"
    parser.add_argument("--chains", dest="key:synthesize.chains", action="store_true", default=None, help=text)
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Synthesizes and says where the rows are."""
    from everlearn.cli.options import make_display, read_recipe
    from everlearn.runs.synthesis import folder_of, synthesize_stream

    recipe = read_recipe(args)
    out = folder_of(recipe)
    made = synthesize_stream(recipe, out, make_display(args, out))
    for path, found in made.items():
        dropped = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in found.dropped.items() if count)
        tell(f"{path}: {len(found.rows)} rows of {found.asked} asked for (dropped: {dropped or 'nothing'})")
    return 0
