"""`everlearn resume`: goes on with a run or comparison from its folder alone."""

from __future__ import annotations

import argparse

from everlearn.visible import tell


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display

    parser = commands.add_parser("resume", help="go on with a run or comparison that was stopped")
    parser.add_argument("folder", metavar="RUN", help="the run folder")
    add_display(parser)


def run(args: argparse.Namespace) -> int:
    """Reads the folder's own recipe and runs it again; finished steps are found, not repeated."""
    from everlearn.cli.options import make_display, named_folder
    from everlearn.cli.run import run_folder, show
    from everlearn.runs.claim import recipe_of
    from everlearn.runs.compare import compare, planned
    from everlearn.updates.folder import is_update

    folder = named_folder(args.folder)
    if is_update(folder):
        from everlearn.cli.update import gone_on_with

        tell(gone_on_with(folder, make_display(args, folder)))
        return 0
    plan = planned(folder)
    if plan is not None:
        recipe, methods, seeds = plan
        compare(recipe, methods, seeds, progress=make_display(args, folder))
        show(folder)
        return 0
    return run_folder(recipe_of(folder), folder, make_display(args, folder))
