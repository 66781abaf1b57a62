"""`everlearn report`: the HTML report and the tables of a run folder, finished or not."""

from __future__ import annotations

import argparse

from everlearn.visible import tell


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser("report", help="write the report of a run or comparison again")
    parser.add_argument("folder", metavar="RUN", help="the run folder")


def run(args: argparse.Namespace) -> int:
    """Writes report.html and prints the tables."""
    from everlearn.cli.options import named_folder
    from everlearn.cli.run import show
    from everlearn.updates.folder import is_update

    folder = named_folder(args.folder)
    if is_update(folder):
        from everlearn.report.versions.html import write_report

        tell(f"Report: {write_report(folder)}")
    else:
        show(folder)
    return 0
