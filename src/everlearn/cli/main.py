"""The `everlearn` command: parses arguments and calls one function of one command's file.

Every command is a file of this folder with `add_parser` and `run`; only the chosen one's work imports anything
heavy. A user's mistake ends with one sentence and exit code 2; Ctrl-C says how to go on and ends with 130.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from everlearn.errors import UserError
from everlearn.report.numbers import in_plain_signs
from everlearn.visible import tell

COMMANDS = (
    "run",
    "compare",
    "resume",
    "evaluate",
    "inspect",
    "report",
    "synthesize",
    "init",
    "doctor",
    "pretrain",
    "update",
)


_OUT_OF_MEMORY = (
    "Finished steps are kept: close other programs that use the device's memory and give the same command again, or "
    "take a smaller model, tuning: lora or dtype: bfloat16 under another --name."
)


class _Parser(argparse.ArgumentParser):
    """Refuses unknown commands and flags with the nearest valid one."""

    def error(self, message: str) -> None:  # type: ignore[override]
        from everlearn.errors import nearest

        if "invalid choice: '" in message:
            given = message.split("invalid choice: '")[1].split("'")[0]
            if guess := nearest(given, COMMANDS):
                message += f" - did you mean {guess!r}?"
        tell(f"everlearn: {message}\nTry '{self.prog} --help'.", file=sys.stderr)
        raise SystemExit(2)


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
    guess = nearest(unknown[0].split("=")[0], flags)
    return f"{command}: unknown argument {' '.join(unknown)}" + (f" (did you mean {guess}?)" if guess else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_refusal(parser, args.command, unknown))
    if isinstance(sys.stdout, io.TextIOWrapper):  # names and signs that the terminal or the pipe cannot show
        codecs.register_error("plain_signs", in_plain_signs)
        sys.stdout.reconfigure(errors="plain_signs")
    try:
        code = int(import_module(f"everlearn.cli.{args.command}").run(args) or 0)
        sys.stdout.flush()
        return code
    except UserError as error:
        tell(f"everlearn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # what read the output has ended, such as `| head`
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # else the interpreter complains as it ends
        return 1
    except RuntimeError as error:
        from everlearn.models.batching import ran_out_of_memory

        if not ran_out_of_memory(error):
            raise
        tell(f"everlearn: {str(error).splitlines()[0]} {_OUT_OF_MEMORY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        tell("\neverlearn: interrupted; finished steps are kept. The same command goes on.", file=sys.stderr)
        return 130
