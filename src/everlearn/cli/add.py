"""`everlearn add`: a new task for a run or comparison that is there."""

from __future__ import annotations

import argparse

FLAGS = {
    "--train": ("train", "file or folder with the training rows"),
    "--evaluation": ("evaluation", "held-out rows; nothing: a tenth of the training rows"),
    "--name": ("name", "name of the task; nothing: that of the training file"),
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display, add_keys

    parser = commands.add_parser(
        "add",
        help="teach a run or comparison one more task",
        description="Adds a task at the end of a run's stream, also months later and on another machine: only the "
        "new stage is trained; matrix, report and model are written anew. After a kill, 'everlearn resume' it.",
    )
    parser.add_argument("folder", metavar="RUN", help="the folder of a run or comparison")
    add_keys(parser, FLAGS, example="metric=exact_match (keys of a task, as under stream.tasks)")
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Adds the task, goes on, and shows what came of it."""
    from everlearn.cli.options import make_display, named_folder, read_keys
    from everlearn.cli.run import show
    from everlearn.recipe import set_dotted
    from everlearn.runs.add import add_task

    folder = named_folder(args.folder)
    task: dict[str, object] = {}
    for key, value in read_keys(args).items():
        set_dotted(task, key, value)
    add_task(folder, task, make_display(args, folder if folder.is_dir() else None))
    show(folder)
    return 0
