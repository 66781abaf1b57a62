"""`everlearn pretrain`: makes the embedded base model again from its recipe."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from everlearn.visible import tell


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    from everlearn.cli.options import add_display

    parser = commands.add_parser("pretrain", help="make the embedded base model again, from its generated corpus")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model and its tokenizer go")
    parser.add_argument(
        "--seed", type=_whole(0, 2**31 - 1), default=0, help="of corpus and weights (0: the one that is shipped)"
    )
    parser.add_argument(
        "--tokens", type=_whole(1, 10**12), default=None, help="token budget (nothing: the shipped model's)"
    )
    parser.add_argument(
        "--threads", type=_whole(1, 1024), default=1, help="processor threads (1: as the shipped model)"
    )
    add_display(parser)


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number within bounds."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        if number is None or not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")
        return number

    return read


def run(args: argparse.Namespace) -> int:
    """Trains and says where the model is."""
    from everlearn.cli.options import make_display, named_folder
    from everlearn.runs.pretraining import pretrain

    out = named_folder(args.out)
    display = make_display(args, out)
    with display.step("pre-training the base") as tick:

        def on_step(state: dict[str, float]) -> None:
            tick(int(state["step"]), int(state["steps"]), f"loss {state['loss']:.2f}")

        summary = pretrain(out, seed=args.seed, tokens=args.tokens, threads=args.threads, progress=on_step)
    tell(f"Wrote {out} ({summary['parameters']:,} parameters, {summary['tokens']:,} tokens). Use: --model {out}")
    return 0
