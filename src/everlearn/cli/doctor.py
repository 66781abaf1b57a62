"""`everlearn doctor`: versions, devices, what is missing, and mending a cache."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from everlearn.visible import tell

OPTIONAL = {
    "sentence_transformers": "embeddings by a sentence-transformers model: pip install 'everlearn[embeddings]'",
    "gguf": "base models in GGUF files: pip install 'everlearn[gguf]'",
    "bitsandbytes": "quantized bases (model.quantization) and 8-bit AdamW: pip install 'everlearn[gpu]'",
    "tensorboard": "training curves in TensorBoard: pip install 'everlearn[tracking]'",
}
_NAMED = 3  # files of an artifact in the list


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser("doctor", help="show versions and devices, and say what is missing")
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="list the corrupt artifacts of a cache, or of a run folder and its cache; delete them after a question",
    )
    parser.add_argument("--yes", action="store_true", help="with --cache: delete what is listed without a question")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; exit code 1 when a required part is missing."""
    if args.cache:
        return _mend(Path(args.cache), agreed=args.yes)
    missing = []
    for requirement in metadata.requires("everlearn") or []:
        if "extra ==" in requirement:
            continue
        name = requirement.split(">")[0].split("=")[0].strip()
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(requirement)
    if missing:
        tell("missing: " + ", ".join(missing) + " - pip install everlearn again")
        return 1
    from everlearn.environment import machine, versions
    from everlearn.models.embedded_base import embedded_base_path

    for name, version in versions().items():
        tell(f"{name:14} {version}")
    tell()
    for name, value in machine().items():
        tell(f"{name:14} {value}")
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not accelerators and hasattr(torch.backends, "mps") and torch.backends.mps.is_available():
        accelerators = ["Apple GPU (mps)"]
    tell(f"{'accelerators':14} {', '.join(accelerators) or 'none: training and generation run on the CPU'}")
    tell(f"{'free disk':14} {shutil.disk_usage(os.getcwd()).free / 2**30:.1f} GiB here")
    tell(f"{'embedded base':14} {embedded_base_path()}")
    for module, purpose in OPTIONAL.items():
        if find_spec(module) is None:
            tell(f"{'optional':14} not installed: {purpose}")
    return 0


def _mend(folder: Path, *, agreed: bool) -> int:
    """Lists what is corrupt, asks, and deletes; 2 where something corrupt stays."""
    from everlearn.errors import RunError
    from everlearn.ordinary_files import is_folder, size
    from everlearn.runs.mending import examine, remove

    if not is_folder(folder, RunError):
        raise RunError(f"no folder {folder}: give the cache (runs/.cache) or a run folder.")
    found = examine(folder)
    for remark in found.remarks:
        tell(f"note: {remark}")
    places = ", ".join(str(place) for place in found.places)
    if not found.damages:
        tell(f"Nothing to delete: {found.artifacts} artifacts compared with their records in {places}.")
        return 0
    for damage in found.damages:
        tell(f"{damage.folder}: {damage.fault}")
        tell(f"    to be deleted: {_files(damage.names)} ({size(damage.size)})")
        if damage.kept:
            tell(f"    kept, as no record of everlearn names it: {_files(damage.kept)}")
    count, total = len(found.damages), size(sum(damage.size for damage in found.damages))
    tell(f"{count} of {found.artifacts} artifacts are corrupt ({total}) in {places}.")
    if not (agreed or _agrees(f"Delete the files listed of {count} artifacts? [y/N] ")):
        tell("Nothing was deleted. With --yes it is, without a question.")
        return 2
    tell(f"{len(remove(found.damages))} of them deleted; 'everlearn resume' makes them again.")
    return 0


def _files(names: Sequence[str]) -> str:
    """The first names and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _agrees(question: str) -> bool:
    """The user's answer; no where nobody can be asked."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
