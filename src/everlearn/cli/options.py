"""Flags that several commands share, each of which is a recipe key."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import RecipeError, RunError

if TYPE_CHECKING:
    from everlearn.progress import LineProgress
    from everlearn.recipe import Recipe

FLAGS = {
    "--name": ("name", "name of the run; its folder is RUNS_DIR/NAME"),
    "--seed": ("seed", "root of every random stream"),
    "--runs-dir": ("runs_dir", "where run folders are made"),
    "--cache-dir": ("cache_dir", "artifacts shared by runs"),
    "--model": ("model.base", "Hugging Face name, local folder, GGUF file, or 'embedded'"),
    "--tuning": ("model.tuning", "lora or full"),
    "--method": ("method.name", "the anti-forgetting method, or several as one, such as ssr+l2"),
    "--epochs": ("training.epochs", "passes over each stage's rows"),
    "--batch-size": ("training.batch_size", "rows per optimizer step"),
    "--learning-rate": ("training.learning_rate", "peak learning rate"),
    "--bad-rows": ("stream.bad_rows", "strict or tolerant"),
}
"""Flag to the key that it sets and what it means."""
LISTS = ("seeds", "synthesize.tasks")
"""Keys whose flag takes several values, apart by commas or each with the flag again."""
NUMBERS = (
    "seed",
    "training.epochs",
    "training.batch_size",
    "training.learning_rate",
    "synthesize.count",
    "path.branch_fraction",
    "schedule.maximal_rate",
)
"""Keys whose flag takes a number; the others take the text as it is."""


def named_folder(text: str) -> Path:
    """The folder, with its name also where it is given as `.` or `..`: a run is called what its folder is called.

    Raises:
        RunError: its name is blank, it is a link, or one stands in it where everlearn reads and writes.
    """
    from everlearn.run_folder import refuse_links

    if not text.strip():
        raise RunError(f"the name of a folder is blank ({text!r}): give one.")
    path = Path(text)
    path = path.resolve() if path.name in ("", "..") else path
    refuse_links(path)
    return path


def add_recipe(parser: argparse.ArgumentParser, flags: Mapping[str, tuple[str, str]] | None = None) -> None:
    """The recipe argument, and the flags that override its keys: those of all commands and the command's own."""
    text = "a YAML recipe, or the name of one that ships with everlearn: embedded (the default), incremental"
    parser.add_argument("recipe", nargs="?", default="embedded", help=text)
    add_keys(parser, {**(flags or {}), **FLAGS}, example="training.epochs=5")


def add_keys(parser: argparse.ArgumentParser, flags: Mapping[str, tuple[str, str]], *, example: str) -> None:
    """Flags that override recipe keys, and `--set` for any other key."""
    group = parser.add_argument_group("recipe keys")
    for flag, (key, text) in flags.items():
        action, metavar = ("append", "LIST") if key in LISTS else ("store", "VALUE")
        group.add_argument(flag, dest=f"key:{key}", action=action, metavar=metavar, help=f"{text} ({key})")
    group.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"any recipe key, such as {example}"
    )


def add_display(parser: argparse.ArgumentParser) -> None:
    """`--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="show nothing but errors and the result")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """`--plan`."""
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print steps, tokens, memory, disk and, by a trial of a minute, the time; train nothing, write nothing",
    )


def read_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe with the command line's overrides.

    Raises:
        RecipeError: a wrong key or value.
    """
    from everlearn.recipe import load_recipe

    return load_recipe(args.recipe, read_keys(args))


def read_keys(args: argparse.Namespace) -> dict[str, object]:
    """The recipe keys that the command line sets: of flags the text or the number, of `--set` the value read as YAML.

    Raises:
        RecipeError: `--set` without a key, or with a value that is not YAML; or a key that is set twice.
    """
    from everlearn.recipe_file import parse

    keys: dict[str, object] = {}
    for name, value in vars(args).items():
        if name.startswith("key:") and value is not None:
            key = name.removeprefix("key:")
            keys[key] = ",".join(value) if isinstance(value, list) else _number(value) if key in NUMBERS else value
    for item in args.set:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise RecipeError(f"--set {item!r}: write KEY=VALUE, such as --set seed=7.")
        again = next(
            (other for other in keys if f"{other}.".startswith(f"{key}.") or key.startswith(f"{other}.")), None
        )
        if again is not None:
            raise RecipeError(f"--set {item!r}: {again} is set already by this command: give each key once.")
        keys[key] = parse(value, f"--set {item!r}: {value!r}")
    return keys


def _number(text: str) -> object:
    """The number that a text is; else the text, which is refused with its key."""
    from everlearn.recipe_file import parse

    try:
        found = parse(text, text)
    except RecipeError:
        return text
    return found if isinstance(found, int | float) else text


def make_display(args: argparse.Namespace, folder: Path | None = None) -> LineProgress:
    """The progress display, with a log file in the run folder."""
    from everlearn.progress import make_progress

    quiet_libraries()
    return make_progress(quiet=args.quiet, log=folder and folder / "run.log")


def quiet_libraries() -> None:
    """Keeps the progress bars and advice of the libraries out of everlearn's own display."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("jieba", "bitsandbytes"):  # the latter misses a package of kernels that everlearn does not use
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch|transformers|peft|sklearn|accelerate")
