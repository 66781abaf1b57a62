"""The `everlearn` command: parses arguments and calls one function of one command's file.

Every command is a file of this folder with `add_parser` and `run`; only the chosen one's work imports anything
heavy. Whatever ends a command early is one sentence (`endings.py`).
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from everlearn.cli.endings import ended_by, stopped_by_signals
from everlearn.crew import crew, is_connected, is_first, is_launched, join
from everlearn.errors import shortened
from everlearn.report.page.numbers import in_plain_signs
from everlearn.visible import tell

COMMANDS = (
    "run",
    "compare",
    "resume",
    "add",
    "evaluate",
    "inspect",
    "report",
    "synthesize",
    "init",
    "doctor",
    "pretrain",
    "update",
)


class _Parser(argparse.ArgumentParser):
    """Refuses unknown commands, and flags that are unknown, not written in full, or given twice."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def error(self, message: str) -> None:  # type: ignore[override]
        from everlearn.errors import nearest

        if "invalid choice: '" in message:
            given = message.split("invalid choice: '")[1].split("'")[0]
            if guess := nearest(given, COMMANDS):
                message += f" - did you mean {guess!r}?"
        if is_first():
            tell(f"everlearn: {shortened(message)}\nTry '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(2)


class _Once(argparse._StoreAction):
    """Takes a value; a flag that is given again would silently drop the first one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None
    ) -> None:
        if option is not None and getattr(namespace, self.dest) is not self.default:
            parser.error(f"argument {option}: given twice, give it once")
        setattr(namespace, self.dest, values)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; imports nothing heavy."""
    from everlearn import __version__

    parser = _Parser(
        prog="everlearn",
        description="Keep teaching a language model without it forgetting: train task after task with the method "
        "of your choice, and measure after every stage what was learned and what was forgotten.",
    )
    parser.add_argument("--version", action="version", version=f"everlearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name in COMMANDS:
        import_module(f"everlearn.cli.{name}").add_parser(commands)
    return parser


def _refusal(parser: argparse.ArgumentParser, command: str, unknown: Sequence[str]) -> str:
    """Names the arguments that the command does not know, with the nearest flag it does."""
    from everlearn.errors import nearest

    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    flags = [flag for action in commands.choices[command]._actions for flag in action.option_strings]
    given = unknown[0].split("=")[0]
    guess, fuller = (
        nearest(given, flags),
        [flag for flag in flags if given.startswith("--") and flag.startswith(given)],
    )
    hint = f" (write {' or '.join(fuller)} in full)" if fuller else f" (did you mean {guess}?)" if guess else ""
    return f"{command}: unknown argument {shortened(' '.join(unknown))}{hint}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    with stopped_by_signals():
        try:
            code = _run(arguments)
        except SystemExit:
            raise
        except BaseException as error:  # the last resort: also what libraries derive from it, such as Rust's panics
            code = ended_by(error)
    if is_connected():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_refusal(parser, args.command, unknown))
    if isinstance(sys.stdout, io.TextIOWrapper):  # names and signs that the terminal or the pipe cannot show
        codecs.register_error("plain_signs", in_plain_signs)
        sys.stdout.reconfigure(errors="plain_signs")
    if getattr(args, "quiet", True) is False and is_first():
        tell(f"everlearn {args.command}: starting, the libraries take some seconds ...", file=sys.stderr)
    command = import_module(f"everlearn.cli.{args.command}")
    if is_launched():
        return _in_crew(command.run, args, sys.argv[1:] if arguments is None else arguments)
    code = int(command.run(args) or 0)
    sys.stdout.flush()
    return code


def _in_crew(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace, given: Sequence[str]) -> int:
    """Runs a command in one process of several: the first one walks, the others serve it."""
    if not join(given).is_first:
        return crew().serve()
    try:
        code = int(run(args) or 0)
        sys.stdout.flush()
    finally:
        crew().end()
    return code
